//! Ranks that talk by NCCL, each with one GPU.
//!
//! Values pass through buffers on the GPU beside the model's, by way of the host's memory. NCCL's library is
//! loaded when ranks are asked for. The first rank makes the id of the group and hands it to the others
//! over a connection to `MASTER_ADDR`, at the port after `MASTER_PORT`: torchrun listens at that one itself.
//! Who asks says its rank; what else connects gets nothing.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaStream, DriverError};
use cudarc::nccl::result::NcclError;
use cudarc::nccl::{Comm, Id, ReduceOp};
use flamingo_dataset::Rank;

use crate::collective::Collective;
use crate::error::TrainError;
use crate::launch::Launch;

/// How long ranks wait for the first one to listen, and that one for all others to ask.
const PATIENCE: Duration = Duration::from_mins(5);
/// Time between two tries to reach it.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// How long the first rank waits for what connects to say its rank.
const SAYS_WITHIN: Duration = Duration::from_secs(1);
/// What a rank says before its number: other programs that look for open ports do not.
const GREETING: [u8; 8] = *b"flamingo";
/// Bytes of an id.
const ID_BYTES: usize = 128;

/// All processes that the launcher started.
#[derive(Debug)]
pub struct NcclRanks {
    comm: Comm,
    stream: Arc<CudaStream>,
    rank: Rank,
}

impl NcclRanks {
    /// Meets the other ranks, with the GPU of this number.
    ///
    /// # Errors
    /// When the environment does not say where the first rank is, it cannot be reached, or the GPU or
    /// NCCL fails.
    pub fn connect(launch: &Launch, gpu: usize) -> Result<Self, TrainError> {
        let rank = launch.rank;
        let id = exchange(launch)?;
        let context = CudaContext::new(gpu).map_err(cuda)?;
        let stream = context.new_stream().map_err(cuda)?;
        let comm =
            Comm::from_rank(Arc::clone(&stream), rank.index, rank.count, id).map_err(nccl)?;
        Ok(Self { comm, stream, rank })
    }

    fn all_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>, TrainError> {
        let own = self.stream.clone_htod(bytes).map_err(cuda)?;
        let all = self.stream.alloc_zeros::<u8>(bytes.len() * self.rank.count);
        let mut all = all.map_err(cuda)?;
        self.comm.all_gather(&own, &mut all).map_err(nccl)?;
        self.stream.clone_dtoh(&all).map_err(cuda)
    }

    fn reduce(&self, root: usize, values: &mut [f32]) -> Result<(), TrainError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut own = self.stream.clone_htod(&*values).map_err(cuda)?;
        self.comm.reduce_in_place(&mut own, &ReduceOp::Sum, root as i32).map_err(nccl)?;
        if self.rank.index == root {
            self.stream.memcpy_dtoh(&own, values).map_err(cuda)?;
        }
        self.stream.synchronize().map_err(cuda)
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), TrainError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut own = self.stream.clone_htod(&*values).map_err(cuda)?;
        self.comm.broadcast_in_place(&mut own, root as i32).map_err(nccl)?;
        self.stream.memcpy_dtoh(&own, values).map_err(cuda)?;
        self.stream.synchronize().map_err(cuda)
    }
}

impl Collective for NcclRanks {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        let lengths = self.all_bytes(&(bytes.len() as u64).to_le_bytes())?;
        let (lengths, _) = lengths.as_chunks::<8>();
        let lengths: Vec<usize> = lengths.iter().map(|n| u64::from_le_bytes(*n) as usize).collect();
        // All send as much as the longest, and at least a byte.
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let all = self.all_bytes(&padded)?;
        Ok(all.chunks(longest).zip(lengths).map(|(part, n)| part[..n].to_vec()).collect())
    }

    fn reduce_scatter(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
        parts.iter_mut().enumerate().try_for_each(|(rank, part)| self.reduce(rank, part))
    }

    fn all_gather(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
        parts.iter_mut().enumerate().try_for_each(|(rank, part)| self.broadcast(rank, part))
    }

    fn send_to_first(&self, from: usize, values: &mut [f32]) -> Result<(), TrainError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut own = self.stream.clone_htod(&*values).map_err(cuda)?;
        if self.rank.index == from {
            self.comm.send(&own, 0).map_err(nccl)?;
        } else {
            self.comm.recv(&mut own, from as i32).map_err(nccl)?;
            self.stream.memcpy_dtoh(&own, values).map_err(cuda)?;
        }
        self.stream.synchronize().map_err(cuda)
    }

    /// Without its end of the group the others' calls fail; their launcher ends them. What is held on the GPU
    /// would wait for the other ranks.
    fn abort(&self, code: u8) {
        std::process::exit(code.into());
    }
}

fn cuda(error: DriverError) -> TrainError {
    TrainError::ranks("reach")(error)
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
fn nccl(error: NcclError) -> TrainError {
    TrainError::ranks("reach")(format!("NCCL: {error:?}"))
}

fn connection(error: std::io::Error) -> TrainError {
    TrainError::ranks("reach")(error)
}

/// The id of the group: the first rank makes it and the others ask for it.
fn exchange(launch: &Launch) -> Result<Id, TrainError> {
    let (host, port) = launch.master.clone().ok_or(TrainError::NoMaster)?;
    let address = (host.as_str(), port.saturating_add(1));
    if launch.rank.index > 0 {
        let bytes = ask(address, launch.rank.index)?;
        return Ok(Id::uninit(bytes.map(u8::cast_signed)));
    }
    let id = Id::new().map_err(nccl)?;
    let bytes = id.internal().map(i8::cast_unsigned);
    let listener = TcpListener::bind(address).map_err(connection)?;
    hand_out(&listener, &bytes, launch.rank.count)?;
    Ok(id)
}

/// Tells all other ranks.
fn hand_out(listener: &TcpListener, bytes: &[u8], count: usize) -> Result<(), TrainError> {
    listener.set_nonblocking(true).map_err(connection)?;
    let started = Instant::now();
    let mut missing: BTreeSet<usize> = (1..count).collect();
    while !missing.is_empty() {
        match listener.accept() {
            // One whose connection breaks asks no more; the time is limited.
            Ok((stream, _)) => drop(answer(stream, bytes, &mut missing)),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(connection(error)),
            Err(_) if started.elapsed() > PATIENCE => {
                let waited = PATIENCE.as_secs();
                let error = format!("no word of rank {missing:?} within {waited} s");
                return Err(TrainError::ranks("reach")(error));
            }
            Err(_) => std::thread::sleep(TRY_EVERY),
        }
    }
    Ok(())
}

/// Tells a rank that has not been told yet.
fn answer(
    mut stream: TcpStream,
    bytes: &[u8],
    missing: &mut BTreeSet<usize>,
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SAYS_WITHIN))?;
    let mut said = [0; GREETING.len() + 8];
    stream.read_exact(&mut said)?;
    let (greeting, rank) = said.split_at(GREETING.len());
    let rank = rank.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte));
    if greeting == GREETING && missing.contains(&rank) {
        stream.write_all(bytes)?;
        missing.remove(&rank);
    }
    Ok(())
}

/// What the first rank tells the one of this number.
fn ask(address: (&str, u16), rank: usize) -> Result<[u8; ID_BYTES], TrainError> {
    let started = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if started.elapsed() > PATIENCE => return Err(connection(error)),
            Err(_) => std::thread::sleep(TRY_EVERY),
        }
    };
    stream.write_all(&GREETING).map_err(connection)?;
    stream.write_all(&(rank as u64).to_le_bytes()).map_err(connection)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(connection)?;
    let mut bytes = [0; ID_BYTES];
    stream.read_exact(&mut bytes).map_err(connection)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_is_told_once_and_what_else_connects_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = ("127.0.0.1", port);
        let id: [u8; ID_BYTES] = std::array::from_fn(|i| i as u8);
        std::thread::scope(|scope| {
            let told = scope.spawn(|| hand_out(&listener, &id, 3));
            let mut stray = TcpStream::connect(address).unwrap();
            stray.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            drop(TcpStream::connect(address).unwrap());
            assert_eq!(ask(address, 2).unwrap(), id);
            assert!(ask(address, 2).is_err(), "a rank is told twice");
            assert_eq!(ask(address, 1).unwrap(), id);
            told.join().unwrap().unwrap();
            let mut bytes = Vec::new();
            // It may be told by a reset, for what it said was not all read.
            let _ = stray.read_to_end(&mut bytes);
            assert!(bytes.is_empty());
        });
    }
}
