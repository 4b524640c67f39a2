//! Ranks that talk by MPI, between CPUs and by the memory of the host.
//!
//! MPI gives errors no way back: an implementation ends all ranks when one is lost, and names it.

use std::fmt;

use flamingo_dataset::Rank;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::request::WaitGuard;
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

    /// All other ranks, as those that something is sent to and those that something comes from at that time: all
    /// send and receive at once.
    fn neighbours(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        let Rank { index, count } = self.rank;
        (1..count).map(move |far| [(index + far) % count, (index + count - far) % count])
    }

    /// Sends values to one rank while others come from one.
    fn exchange(&self, to: usize, sent: &[f32], from: usize, received: &mut [f32]) {
        let [to, from] = [to, from].map(|rank| self.world.process_at_rank(rank as i32));
        mpi::request::scope(|scope| {
            let sending = sent.chunks(VALUES_PER_CALL);
            let sending: Vec<_> =
                sending.map(|values| WaitGuard::from(to.immediate_send(scope, values))).collect();
            received.chunks_mut(VALUES_PER_CALL).for_each(|values| {
                from.receive_into(values);
            });
            drop(sending);
        });
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

    fn reduce_scatter(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
        let mut own = std::mem::take(&mut parts[self.rank.index]);
        let mut received = vec![0.0_f32; own.len()];
        if self.rank.count == 2 {
            for [to, from] in self.neighbours() {
                self.exchange(to, &parts[to], from, &mut received);
                own.iter_mut().zip(&received).for_each(|(sum, value)| *sum += value);
            }
        } else {
            // Rounded once, as the sum of two is.
            let mut sums: Vec<f64> = own.iter().copied().map(f64::from).collect();
            for [to, from] in self.neighbours() {
                self.exchange(to, &parts[to], from, &mut received);
                sums.iter_mut().zip(&received).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            own.iter_mut().zip(sums).for_each(|(own, sum)| *own = sum as f32);
        }
        parts[self.rank.index] = own;
        Ok(())
    }

    fn all_gather(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
        let own = std::mem::take(&mut parts[self.rank.index]);
        for [to, from] in self.neighbours() {
            self.exchange(to, &own, from, &mut parts[from]);
        }
        parts[self.rank.index] = own;
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
