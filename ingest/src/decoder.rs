//! Clips are decoded in processes of their own, each with a limit on memory and on time, so that a
//! codec that crashes, hangs or eats memory costs one clip.
//!
//! The program starts itself with a hidden command, [`serve`]. A process is used for many clips; what
//! goes wrong in one that was used before is tried again in a new one, so that what becomes of a clip
//! does not depend on those before it.
//!
//! Messages, either way: one byte that says what it is, the length in four bytes, the content. A
//! request is TOML. The answer is frames, then facts or a reason in TOML.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use image::RgbImage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::clip::{ClipFacts, Part, Sampled, read_clip};
use crate::outcome::without_panic;
use crate::plan::VideoPlan;
use crate::reject::DropReason;
use crate::word::word;

/// The hidden command that decodes clips.
pub const COMMAND: &str = "decode-clips";

/// Clips after which a process is replaced: libraries may leak.
const CLIPS_PER_PROCESS: u32 = 500;
/// Longest message but a frame: a request, facts or a reason.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a frame beside its pixels.
const FRAME_HEAD_BYTES: usize = 12;
/// Bytes read from a process at a time.
const PIPE_BYTES: usize = 64 << 10;
/// Bytes of a dead process's last words that are kept.
const LAST_WORDS_BYTES: u64 = 400;
/// How the Rust runtime starts its last words when memory is out.
const NO_MEMORY_WORDS: &str = "memory allocation of";
/// The signal that ends a process at its CPU limit (POSIX).
const SIGXCPU: i32 = 24;

const FRAME: u8 = b'F';
const AGAIN: u8 = b'A';
const FACTS: u8 = b'C';
const DROP: u8 = b'D';
const REQUEST: u8 = b'R';

/// What a process is asked for.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    path: String,
    part: Part,
    rules: VideoPlan,
}

/// A reason on its way between processes.
#[derive(Debug, Serialize, Deserialize)]
struct Reason {
    rule: String,
    measured: Option<f64>,
    limit: Option<f64>,
    detail: Option<String>,
}

impl Reason {
    fn of(drop: &DropReason) -> Self {
        let detail = drop.detail.clone();
        let (measured, limit) = (drop.measured, drop.limit);
        Self { rule: drop.reason.to_owned(), measured, limit, detail }
    }

    fn drop_reason(self) -> DropReason {
        let rule = word(&self.rule).unwrap_or("bad_video");
        let (measured, limit, detail) = (self.measured, self.limit, self.detail);
        DropReason { measured, limit, detail, ..DropReason::because(rule) }
    }
}

/// Processes that decode.
pub struct Decoders {
    program: PathBuf,
    idle: Mutex<Vec<Process>>,
}

/// Why a process is of no use any more.
#[derive(Debug)]
enum Fault {
    /// It took longer than the plan allows.
    Late,
    /// It ended, or wrote what is no answer.
    Gone(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

impl Decoders {
    /// Decoders that run `program`, which calls [`serve`] when its argument is [`COMMAND`].
    pub fn new(program: PathBuf) -> Self {
        Self { program, idle: Mutex::new(Vec::new()) }
    }

    /// The program that is running, as it was when it was started: it may be replaced meanwhile.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn of_this_program() -> io::Result<Self> {
        let running = Path::new("/proc/self/exe");
        let program = if running.exists() { running.to_owned() } else { std::env::current_exe()? };
        Ok(Self::new(program))
    }

    /// Reads a clip as [`read_clip`] does, in another process.
    ///
    /// # Errors
    /// When no process can be started. What is wrong with the clip is a value.
    pub fn read(
        &self,
        path: &Path,
        part: Part,
        rules: &VideoPlan,
        mut sink: impl FnMut(Sampled) -> Result<(), DropReason>,
    ) -> io::Result<Result<ClipFacts, DropReason>> {
        let Some(path) = path.to_str() else {
            return Ok(Err(DropReason::because("bad_file_name")));
        };
        let request = Request { path: path.to_owned(), part, rules: rules.clone() };
        let used = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut process) = used {
            match process.read(&request, &mut sink) {
                Ok(result) => return Ok(self.put_back(process, result)),
                Err(_) => {
                    if let Err(drop) = sink(Sampled::Again) {
                        return Ok(Err(drop));
                    }
                }
            }
        }
        let mut process = Process::start(&self.program)?;
        match process.read(&request, &mut sink) {
            Ok(result) => Ok(self.put_back(process, result)),
            Err(fault) => Ok(Err(process.bury(&fault, rules))),
        }
    }

    fn put_back<T>(&self, process: Process, result: T) -> T {
        if process.n_clips < CLIPS_PER_PROCESS {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        }
        result
    }
}

/// One process.
struct Process {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
    /// Bytes that were read and not used.
    buffer: Vec<u8>,
    used: usize,
    n_clips: u32,
}

impl Process {
    fn start(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (requests, answers) = pipes.expect("both pipes were asked for");
        Ok(Self { child, requests, answers, buffer: Vec::new(), used: 0, n_clips: 0 })
    }

    /// One clip. The outer error is about the process, the inner about the clip.
    fn read(
        &mut self,
        request: &Request,
        sink: &mut impl FnMut(Sampled) -> Result<(), DropReason>,
    ) -> Result<Result<ClipFacts, DropReason>, Fault> {
        self.n_clips += 1;
        let text = to_toml(request);
        write_message(&mut self.requests, REQUEST, &[text.as_bytes()])?;
        let deadline =
            Instant::now() + Duration::from_secs(request.rules.decoder_seconds_max.into());
        let frame_bytes_max = FRAME_HEAD_BYTES as u64 + 3 * request.rules.pixels_max;
        // What the caller does not want any more is read to its end, so that the process is of use.
        let mut refused = None;
        loop {
            let mut head = [0; 5];
            self.fill(&mut head, deadline)?;
            let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let limit = if head[0] == FRAME { frame_bytes_max } else { TEXT_BYTES_MAX as u64 };
            if length as u64 > limit {
                return Err(bad_answer("it is too long"));
            }
            let mut content = vec![0; length];
            self.fill(&mut content, deadline)?;
            let sampled = match head[0] {
                FRAME => frame_of(content).ok_or_else(|| bad_answer("a frame is not whole"))?,
                AGAIN => Sampled::Again,
                FACTS => {
                    let facts = of_toml(&content)?;
                    return Ok(refused.map_or(Ok(facts), Err));
                }
                DROP => {
                    let drop = of_toml::<Reason>(&content)?.drop_reason();
                    return Ok(Err(refused.unwrap_or(drop)));
                }
                _ => return Err(bad_answer("it is of no known kind")),
            };
            if refused.is_none() {
                refused = sink(sampled).err();
            }
        }
    }

    /// Fills `out` before `deadline`.
    fn fill(&mut self, out: &mut [u8], deadline: Instant) -> Result<(), Fault> {
        let mut filled = 0;
        while filled < out.len() {
            if self.used == self.buffer.len() {
                self.wait(deadline)?;
                self.buffer.resize(PIPE_BYTES, 0);
                let n = self.answers.read(&mut self.buffer)?;
                self.buffer.truncate(n);
                self.used = 0;
                if n == 0 {
                    return Err(Fault::Gone(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            let ready = &self.buffer[self.used..];
            let n = ready.len().min(out.len() - filled);
            out[filled..filled + n].copy_from_slice(&ready[..n]);
            self.used += n;
            filled += n;
        }
        Ok(())
    }

    /// Waits until there is something to read.
    fn wait(&self, deadline: Instant) -> Result<(), Fault> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.answers, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(Fault::Late),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Fault::Gone(error.into())),
            }
        }
    }

    /// Ends the process; returns what became of its last clip.
    fn bury(mut self, fault: &Fault, rules: &VideoPlan) -> DropReason {
        // What it answers wrongly is not yet dead; where it is, there is nothing to kill.
        let is_ours =
            matches!(fault, Fault::Gone(error) if error.kind() == io::ErrorKind::InvalidData);
        let _ = self.child.kill();
        let mut words = String::new();
        if let Some(errors) = self.child.stderr.take() {
            let _ = errors.take(LAST_WORDS_BYTES).read_to_string(&mut words);
        }
        let signal = self.child.wait().ok().and_then(|status| status.signal());
        let signal = signal.filter(|_| !is_ours);
        let (seconds, cpu_seconds) = (rules.decoder_seconds_max, rules.decoder_cpu_seconds_max);
        match (fault, signal) {
            (Fault::Late, _) => DropReason {
                detail: Some("it did not come to an end".into()),
                ..DropReason::limit("decoder_timeout", f64::from(seconds), f64::from(seconds))
            },
            (_, Some(SIGXCPU)) => DropReason {
                detail: Some("it used up its time on the processor".into()),
                ..DropReason::limit(
                    "decoder_timeout",
                    f64::from(cpu_seconds),
                    f64::from(cpu_seconds),
                )
            },
            _ if words.starts_with(NO_MEMORY_WORDS) => {
                DropReason::detail("out_of_memory", words.trim())
            }
            (_, Some(signal)) => {
                DropReason::detail("decoder_crashed", format!("signal {signal} {}", words.trim()))
            }
            (Fault::Gone(error), None) => {
                DropReason::detail("decoder_crashed", format!("{error} {}", words.trim()))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It waits for a request, or its work is of no use to anyone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bad_answer(what: &str) -> Fault {
    Fault::Gone(io::Error::new(io::ErrorKind::InvalidData, format!("an answer: {what}")))
}

fn to_toml(value: &impl Serialize) -> String {
    toml::to_string(value).expect("numbers and strings have a TOML form")
}

fn of_toml<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|_| bad_answer("it is not UTF-8"))?;
    toml::from_str(text).map_err(|_| bad_answer("it is not what was asked for"))
}

fn write_message(out: &mut impl Write, kind: u8, content: &[&[u8]]) -> io::Result<()> {
    let length = content.iter().map(|part| part.len()).sum::<usize>();
    let length = u32::try_from(length).map_err(io::Error::other)?;
    out.write_all(&[kind])?;
    out.write_all(&length.to_le_bytes())?;
    content.iter().try_for_each(|part| out.write_all(part))?;
    out.flush()
}

/// Time, width and height in front of the pixels.
fn frame_head(ms: i32, rgb: &RgbImage) -> [u8; FRAME_HEAD_BYTES] {
    let mut head = [0; FRAME_HEAD_BYTES];
    let numbers = [ms.to_le_bytes(), rgb.width().to_le_bytes(), rgb.height().to_le_bytes()];
    head.copy_from_slice(numbers.as_flattened());
    head
}

fn frame_of(mut content: Vec<u8>) -> Option<Sampled> {
    let (head, _) = content.split_first_chunk::<FRAME_HEAD_BYTES>()?;
    let number = |i: usize| [head[i], head[i + 1], head[i + 2], head[i + 3]];
    let (ms, width, height) = (
        i32::from_le_bytes(number(0)),
        u32::from_le_bytes(number(4)),
        u32::from_le_bytes(number(8)),
    );
    content.drain(..FRAME_HEAD_BYTES);
    let is_whole = content.len() as u64 == 3 * u64::from(width) * u64::from(height);
    is_whole.then(|| RgbImage::from_raw(width, height, content))?.map(|rgb| Sampled::Frame(rgb, ms))
}

/// The other side: answers requests on standard input until there are no more.
///
/// # Errors
/// When the process that asks is gone, or a limit cannot be set.
pub fn serve() -> io::Result<()> {
    ffmpeg_next::init().map_err(io::Error::other)?;
    let mut requests = BufReader::new(io::stdin().lock());
    let mut answers = BufWriter::with_capacity(PIPE_BYTES, io::stdout().lock());
    while let Some(request) = next_request(&mut requests)? {
        limit(&request.rules)?;
        let mut is_gone = None;
        let path = Path::new(&request.path);
        let result = without_panic(|| {
            read_clip(path, request.part, &request.rules, |sampled| {
                let written = match &sampled {
                    Sampled::Frame(rgb, ms) => {
                        write_message(&mut answers, FRAME, &[&frame_head(*ms, rgb), rgb.as_raw()])
                    }
                    Sampled::Again => write_message(&mut answers, AGAIN, &[]),
                };
                written.map_err(|error| {
                    is_gone = Some(error);
                    DropReason::because("internal_error")
                })
            })
        });
        if let Some(error) = is_gone {
            return Err(error);
        }
        match result.and_then(|result| result) {
            Ok(facts) => write_message(&mut answers, FACTS, &[to_toml(&facts).as_bytes()])?,
            Err(drop) => {
                write_message(&mut answers, DROP, &[to_toml(&Reason::of(&drop)).as_bytes()])?;
            }
        }
    }
    Ok(())
}

fn next_request(requests: &mut impl Read) -> io::Result<Option<Request>> {
    let mut head = [0; 5];
    match requests.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != REQUEST || length > TEXT_BYTES_MAX {
        return Err(io::Error::other("standard input holds no request for a clip"));
    }
    let mut content = vec![0; length];
    requests.read_exact(&mut content)?;
    let request = of_toml(&content).map_err(|fault| match fault {
        Fault::Gone(error) => error,
        Fault::Late => io::ErrorKind::TimedOut.into(),
    })?;
    Ok(Some(request))
}

/// Limits this process: memory that it may take, seconds on the processor from now on, no files to
/// write and no images of itself.
fn limit(rules: &VideoPlan) -> io::Result<()> {
    // Private memory that can be written; the address space also holds the libraries.
    lower(Resource::Data, rules.decoder_bytes_max)?;
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.unsigned_abs();
    // The second that has begun counts as used.
    lower(Resource::Cpu, used + 1 + u64::from(rules.decoder_cpu_seconds_max))?;
    lower(Resource::Core, 0)?;
    lower(Resource::Fsize, 0)
}

/// Sets the limit that is in force and leaves the one up to which it may be raised.
fn lower(resource: Resource, value: u64) -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let current = Some(maximum.map_or(value, |maximum| value.min(maximum)));
    setrlimit(resource, Rlimit { current, maximum }).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_pipe() {
        let rgb = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let content = [&frame_head(-5, &rgb)[..], rgb.as_raw()].concat();
        assert_eq!(frame_of(content.clone()), Some(Sampled::Frame(rgb, -5)));
        assert_eq!(frame_of(content[..content.len() - 1].to_vec()), None);
        assert_eq!(frame_of(vec![0; 5]), None);
    }

    #[test]
    fn a_reason_survives_the_pipe() {
        let drop = DropReason {
            detail: Some("three cuts".into()),
            ..DropReason::limit("scene_cut", 0.1, 0.3)
        };
        let text = to_toml(&Reason::of(&drop));
        assert_eq!(of_toml::<Reason>(text.as_bytes()).unwrap().drop_reason(), drop);
        assert!(of_toml::<Reason>(b"rule = 3").is_err());
    }

    #[test]
    fn a_program_that_does_not_decode_is_a_crash() {
        let rules = VideoPlan::default();
        let read = |program: &str| {
            let decoders = Decoders::new(program.into());
            decoders.read(Path::new("a.mp4"), Part::WHOLE, &rules, |_| Ok(()))
        };
        assert_eq!(read("/bin/false").unwrap().unwrap_err().reason, "decoder_crashed");
        assert!(read("/no/such/program").is_err());
    }
}
