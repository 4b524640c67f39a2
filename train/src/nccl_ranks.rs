//! Ranks that talk by NCCL, each with one GPU.
//!
//! Values pass through buffers on the GPU beside the model's, by way of the host's memory. NCCL's library is
//! loaded when ranks are asked for. The first rank makes the id of the group and hands it to the others
//! over a connection to `MASTER_ADDR`, at the port after `MASTER_PORT`: torchrun listens at that one itself.

use std::io::{Read, Write};
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

/// How long ranks wait for the first one to listen.
const PATIENCE: Duration = Duration::from_mins(5);
/// Time between two tries to reach it.
const TRY_EVERY: Duration = Duration::from_millis(100);
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

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<u8>, TrainError> {
        let own = self.stream.clone_htod(bytes).map_err(cuda)?;
        let all = self.stream.alloc_zeros::<u8>(bytes.len() * self.rank.count);
        let mut all = all.map_err(cuda)?;
        self.comm.all_gather(&own, &mut all).map_err(nccl)?;
        self.stream.clone_dtoh(&all).map_err(cuda)
    }
}

impl Collective for NcclRanks {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        let lengths = self.all_gather(&(bytes.len() as u64).to_le_bytes())?;
        let (lengths, _) = lengths.as_chunks::<8>();
        let lengths: Vec<usize> = lengths.iter().map(|n| u64::from_le_bytes(*n) as usize).collect();
        // All send as much as the longest, and at least a byte.
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let all = self.all_gather(&padded)?;
        Ok(all.chunks(longest).zip(lengths).map(|(part, n)| part[..n].to_vec()).collect())
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

    /// Without its end of the group the others' calls fail; their launcher ends them.
    #[expect(clippy::exit, reason = "what is held on the GPU would wait for the other ranks")]
    fn abort(&self, code: u8) {
        std::process::exit(code.into());
    }
}

fn cuda(error: DriverError) -> TrainError {
    TrainError::ranks("reach")(error)
}

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
        let bytes = ask(address)?;
        return Ok(Id::uninit(bytes.map(u8::cast_signed)));
    }
    let id = Id::new().map_err(nccl)?;
    let bytes = id.internal().map(i8::cast_unsigned);
    let listener = TcpListener::bind(address).map_err(connection)?;
    for _ in 1..launch.rank.count {
        let (mut stream, _) = listener.accept().map_err(connection)?;
        stream.write_all(&bytes).map_err(connection)?;
    }
    Ok(id)
}

/// What the first rank tells those who ask.
fn ask(address: (&str, u16)) -> Result<[u8; ID_BYTES], TrainError> {
    let started = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if started.elapsed() > PATIENCE => return Err(connection(error)),
            Err(_) => std::thread::sleep(TRY_EVERY),
        }
    };
    let mut bytes = [0; ID_BYTES];
    stream.read_exact(&mut bytes).map_err(connection)?;
    Ok(bytes)
}
