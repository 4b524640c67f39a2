//! Ranks that talk by MPI, between CPUs and by the memory of the host.
//!
//! MPI gives errors no way back: an implementation ends all ranks when one is lost, and names it.

use std::fmt;

use flamingo_dataset::Rank;
use mpi::collective::{Root, SystemOperation};
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Source};
use mpi::{Count, Threading};

use crate::collective::Collective;
use crate::error::TrainError;
use crate::launch::Launch;

/// Values of one call: MPI counts in 32 bits.
const VALUES_PER_CALL: usize = 1 << 28;

/// All processes that the launcher started.
pub struct MpiRanks {
    // Before what ends MPI when it is dropped.
    world: SimpleCommunicator,
    rank: Rank,
    _universe: Universe,
}

impl fmt::Debug for MpiRanks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiRanks").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl MpiRanks {
    /// Meets the other ranks.
    ///
    /// # Errors
    /// When MPI was begun before, or knows other ranks than the launcher told of.
    pub fn connect(launch: &Launch) -> Result<Self, TrainError> {
        // Calls come from the main thread alone; others load rows and compute.
        let begun = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) = begun.ok_or(TrainError::MpiTwice)?;
        let world = universe.world();
        let [index, count] = [world.rank(), world.size()].map(|number| number as usize);
        let rank = Rank { index, count };
        if rank != launch.rank {
            return Err(TrainError::MpiDiffers { mpi: count, launched: launch.rank.count });
        }
        Ok(Self { world, rank, _universe: universe })
    }
}

impl Collective for MpiRanks {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        // With a byte behind them: the address of nothing is what Open MPI calls MPI_IN_PLACE.
        let own = [bytes, &[0]].concat();
        let mut counts: Vec<Count> = vec![0; self.rank.count];
        self.world.all_gather_into(&(own.len() as Count), &mut counts[..]);
        let firsts = counts.iter().scan(0, |next: &mut Count, n| {
            let first = *next;
            *next += n;
            Some(first)
        });
        let firsts: Vec<Count> = firsts.collect();
        let mut all = vec![0_u8; counts.iter().sum::<Count>() as usize];
        let mut parts = PartitionMut::new(&mut all[..], &counts[..], &firsts[..]);
        self.world.all_gather_varcount_into(&own[..], &mut parts);
        let part = |(first, n): (&Count, &Count)| {
            let first = *first as usize;
            all[first..first + *n as usize - 1].to_vec()
        };
        Ok(firsts.iter().zip(&counts).map(part).collect())
    }

    fn reduce(&self, root: usize, values: &mut [f32]) -> Result<(), TrainError> {
        let process = self.world.process_at_rank(root as i32);
        for values in values.chunks_mut(VALUES_PER_CALL) {
            if self.rank.index == root {
                let mut sum = vec![0.0_f32; values.len()];
                process.reduce_into_root(&*values, &mut sum[..], SystemOperation::sum());
                values.copy_from_slice(&sum);
            } else {
                process.reduce_into(&*values, SystemOperation::sum());
            }
        }
        Ok(())
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), TrainError> {
        let process = self.world.process_at_rank(root as i32);
        values.chunks_mut(VALUES_PER_CALL).for_each(|values| process.broadcast_into(values));
        Ok(())
    }

    fn send_to_first(&self, from: usize, values: &mut [f32]) -> Result<(), TrainError> {
        for values in values.chunks_mut(VALUES_PER_CALL) {
            if self.rank.index == from {
                self.world.process_at_rank(0).send(&*values);
            } else {
                self.world.process_at_rank(from as i32).receive_into(values);
            }
        }
        Ok(())
    }

    fn abort(&self, code: u8) {
        self.world.abort(code.into());
    }
}
