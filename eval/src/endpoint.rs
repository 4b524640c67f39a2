//! A model behind a chat interface as `OpenAI`'s, asked in parallel.
//!
//! Pictures go along as they are; a film as its frames. `<EOC>` becomes a line break. What a model is told first is
//! [`INSTRUCTION`], unless it is given another one. Answers are written greedily: there are no beams. Closed tasks list their candidates, and
//! the one that the answer means scores 1, see [`candidate_match`](crate::candidate_match).
//!
//! Every answer is kept in `replies_TASK.jsonl` as it comes, by a digest of its request: nothing is asked twice, whatever the order in
//! which answers came and whenever the evaluation was cut off.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use flamingo_dataset::sha256_hex;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use crate::benchmark::Benchmark;
use crate::candidate_match::meant_candidate;
use crate::chat::{Chat, Part, answer, data_url, quoted};
use crate::draw::{mix, mix_text};
use crate::error::EvalError;
use crate::evaluate::Part as Share;
use crate::pace::Pace;
use crate::prompt::Piece;
use crate::samples::{Record, SampleLog};
use crate::subject::{Asked, ModelCard, OutOfContext, Ranked, Subject, Writing};
use crate::task_file::Decoding;

/// What a model is told first.
pub const INSTRUCTION: &str = "The message of the user ends where an answer is missing. Reply with that answer \
                               alone, in the way of the examples where there are any.";

/// Queries that are put to a server before the next are looked at: many times those that it answers at once.
const BATCH: usize = 256;

/// Tokens in which a candidate can be repeated.
const CANDIDATE_TOKENS: usize = 64;

/// Bytes of a reply that are read; answers have some thousands.
const REPLY_BYTES_MAX: usize = 8 << 20;

/// The pause before the first repetition; each next one is twice as long, up to a limit.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// Longest pause that is granted to a server that asks for one.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

/// How a server is asked.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EndpointOptions {
    /// Address of the server of an `openai:` model, such as `http://127.0.0.1:8000/v1`. Its key is read from the environment
    /// variable `OPENAI_API_KEY`, if there is one.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<Url>,
    /// Most requests at a time. It begins with a few, goes up while the server answers and down by half when it
    /// does not (429, 5xx, timeouts).
    #[arg(long, default_value_t = 32, value_name = "N", requires = "endpoint")]
    pub concurrency_max: usize,
    /// How often a request is repeated before the evaluation stops; what was answered by then is kept.
    #[arg(long, default_value_t = 8, value_name = "N", requires = "endpoint")]
    pub retries: u32,
    /// Seconds that an answer may take.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", requires = "endpoint",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// What the model is told first.
    #[arg(long, default_value = INSTRUCTION, hide_default_value = true, value_name = "TEXT",
          requires = "endpoint")]
    pub instruction: String,
}

/// A server with a model.
pub struct Endpoint {
    model: String,
    options: EndpointOptions,
    /// Where requests go.
    address: Url,
    client: Client,
    key: Option<HeaderValue>,
    runtime: Runtime,
    pace: RefCell<Pace>,
}

/// An answer as it came.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Reply {
    /// Digest of the request.
    key: String,
    /// Id of the item that it is about.
    item: String,
    /// The answer.
    text: String,
}

impl Record for Reply {
    fn key(&self) -> &str {
        &self.key
    }
}

/// A request that is ready to be sent.
struct Request {
    index: usize,
    item: String,
    key: String,
    body: String,
    /// How often it was sent.
    tries: u32,
    /// What is waited for before it is sent.
    pause: Duration,
}

/// Why there is no answer.
enum Trouble {
    /// It may go away.
    Passing { what: String, pause: Option<Duration> },
    /// It will not.
    Lasting(String),
}

impl Endpoint {
    /// A client for a server; nothing is sent yet.
    ///
    /// # Errors
    /// When no address is given, it is none of HTTP, or the key is no text of ASCII.
    pub fn open(
        model: &str,
        options: &EndpointOptions,
        key: Option<&str>,
    ) -> Result<Self, EvalError> {
        let unfit = |problem: &str| EvalError::Unfit {
            what: format!("--model openai:{model}"),
            problem: problem.to_owned(),
        };
        let base = options.endpoint.as_ref().ok_or_else(|| unfit("needs --endpoint URL"))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(unfit("--endpoint must be an http:// or https:// address"));
        }
        let mut address = base.clone();
        address.set_path(&format!("{}/chat/completions", base.path().trim_end_matches('/')));
        let is_here = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let mut client = Client::builder()
            .timeout(Duration::from_secs(options.timeout))
            // A key is for this server alone.
            .redirect(Policy::none());
        if is_here {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| unfit(&chain(&error)))?;
        let key = key.map(|key| {
            let mut header = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| unfit("OPENAI_API_KEY has characters that no key has"))?;
            header.set_sensitive(true);
            Ok::<_, EvalError>(header)
        });
        let key = key.transpose()?;
        if key.is_some() && base.scheme() == "http" && !is_here {
            eprintln!("warning: OPENAI_API_KEY goes to {base} without encryption");
        }
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(EvalError::file("wait for", base.as_str()))?;
        let pace = RefCell::new(Pace::new(options.concurrency_max));
        let (model, options) = (model.to_owned(), options.clone());
        Ok(Self { model, options, address, client, key, runtime, pace })
    }

    /// The model on the media of a benchmark; answers are kept in the folder `out`.
    ///
    /// # Errors
    /// When the file of earlier answers cannot be read or made.
    pub fn subject<'a>(
        &'a self,
        benchmark: &'a Benchmark,
        out: &Path,
        share: Option<Share>,
    ) -> Result<EndpointSubject<'a>, EvalError> {
        let path = replies_file(out, &benchmark.task.name, share);
        let replies = RefCell::new(SampleLog::open(&path)?);
        Ok(EndpointSubject { endpoint: self, benchmark, replies })
    }

    /// What results say of it. Whether the server changes the model is not known here.
    pub fn card(&self) -> ModelCard {
        let name = format!("openai:{} at {}", self.model, self.address);
        let decides = format!("{name}\n{}", self.options.instruction);
        ModelCard {
            sha256: sha256_hex(decides.as_bytes()),
            name,
            device: "a server with a chat interface".to_owned(),
        }
    }

    /// Sends a request once.
    async fn send(&self, body: &str) -> Result<String, Trouble> {
        let mut request = self.client.post(self.address.clone());
        request = request.header(CONTENT_TYPE, "application/json").body(body.to_owned());
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let passing = |error: &reqwest::Error| Trouble::Passing { what: chain(error), pause: None };
        let mut response = request.send().await.map_err(|error| passing(&error))?;
        let (status, pause) = (response.status(), retry_after(&response)?);
        let body = read(&mut response).await?;
        if status.is_success() {
            return answer(&body).map_err(|what| Trouble::Passing { what, pause: None });
        }
        let what = format!("{status}: {}", quoted(&body));
        Err(if may_pass(status) {
            Trouble::Passing { what, pause }
        } else {
            Trouble::Lasting(what)
        })
    }

    /// Waits, sends a request, and tells in which stretch of the pace it was sent.
    async fn attempt(&self, request: Request) -> (Request, usize, Result<String, Trouble>) {
        if !request.pause.is_zero() {
            tokio::time::sleep(request.pause).await;
        }
        let epoch = self.pace.borrow().epoch();
        let found = self.send(&request.body).await;
        (request, epoch, found)
    }

    /// The request once more after a pause, or the end of the evaluation.
    fn again(&self, request: Request, trouble: Trouble) -> Result<Request, EvalError> {
        let stop = |problem: String| EvalError::Endpoint {
            address: self.address.to_string(),
            item: request.item.clone(),
            problem,
        };
        let (what, asked) = match trouble {
            Trouble::Lasting(what) => return Err(stop(what)),
            Trouble::Passing { what, pause } => (what, pause),
        };
        let tries = request.tries + 1;
        if tries > self.options.retries {
            return Err(stop(format!("asked {tries} times, at last {what}")));
        }
        let pause = asked.unwrap_or_else(|| pause(&request.key, request.tries));
        Ok(Request { tries, pause, ..request })
    }
}

/// The model on the media of one benchmark.
pub struct EndpointSubject<'a> {
    endpoint: &'a Endpoint,
    benchmark: &'a Benchmark,
    replies: RefCell<SampleLog<Reply>>,
}

impl EndpointSubject<'_> {
    /// Answers to requests, in their order.
    fn answers(
        &self,
        n: usize,
        body: impl Fn(usize) -> Result<(String, String), EvalError>,
    ) -> Result<Vec<String>, EvalError> {
        self.endpoint.runtime.block_on(self.converse(n, body))
    }

    async fn converse(
        &self,
        n: usize,
        body: impl Fn(usize) -> Result<(String, String), EvalError>,
    ) -> Result<Vec<String>, EvalError> {
        let endpoint = self.endpoint;
        let mut texts = vec![String::new(); n];
        let mut waiting: VecDeque<usize> = (0..n).collect();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < endpoint.pace.borrow().limit()
                && let Some(index) = waiting.pop_front()
            {
                let (item, body) = body(index)?;
                let key = sha256_hex(format!("{}\n{body}", endpoint.address).as_bytes());
                if let Some(reply) = self.replies.borrow().get(&key) {
                    texts[index].clone_from(&reply.text);
                    continue;
                }
                let request = Request { index, item, key, body, tries: 0, pause: Duration::ZERO };
                running.push(endpoint.attempt(request));
            }
            let Some((request, epoch, found)) = running.next().await else { return Ok(texts) };
            match found {
                Ok(text) => {
                    endpoint.pace.borrow_mut().succeeded();
                    texts[request.index].clone_from(&text);
                    let reply = Reply { key: request.key, item: request.item, text };
                    self.replies.borrow_mut().append(vec![reply])?;
                }
                Err(trouble) => {
                    endpoint.pace.borrow_mut().failed(epoch);
                    running.push(endpoint.attempt(endpoint.again(request, trouble)?));
                }
            }
        }
    }

    /// The parts of a prompt: text, and pictures or frames.
    fn parts(&self, asked: &Asked<'_>) -> Result<Vec<Part>, EvalError> {
        let mut parts = Vec::new();
        for piece in &asked.pieces {
            match piece {
                Piece::Text(text) => parts.push(Part::Text(text.clone())),
                Piece::EndOfChunk => parts.push(Part::Text("\n".to_owned())),
                Piece::Image(place) => {
                    let item = self.benchmark.item(*place);
                    let Some(medium) = &item.medium else {
                        let problem = "has no picture or film".to_owned();
                        return Err(EvalError::Medium { name: item.id.clone(), problem });
                    };
                    for frame in &medium.frames(self.benchmark.task.frames)? {
                        let address = data_url(frame).map_err(|source| EvalError::Image {
                            key: item.id.clone(),
                            source: Box::new(source),
                        })?;
                        parts.push(Part::Image(address));
                    }
                }
            }
        }
        Ok(parts)
    }

    fn body(&self, parts: &[Part], tokens_max: usize, stop: &[String]) -> String {
        let (model, instruction) = (&self.endpoint.model, &self.endpoint.options.instruction);
        Chat { model, instruction, parts, tokens_max, stop }.body().to_string()
    }
}

impl Subject for EndpointSubject<'_> {
    fn card(&self) -> ModelCard {
        self.endpoint.card()
    }

    /// The server knows, and says so when it is asked.
    fn out_of_context(&self, _: &Asked<'_>, _: usize) -> Option<OutOfContext> {
        None
    }

    fn batch(&self) -> usize {
        BATCH
    }

    fn write(&self, asked: &[Asked<'_>], writing: Writing<'_>) -> Result<Vec<String>, EvalError> {
        self.answers(asked.len(), |index| {
            let parts = self.parts(&asked[index])?;
            let body = self.body(&parts, writing.tokens_max, writing.stop);
            Ok((asked[index].item.id.clone(), body))
        })
    }

    fn rank(&self, asked: &[Asked<'_>], _: Decoding) -> Result<Vec<Ranked>, EvalError> {
        let texts = self.answers(asked.len(), |index| {
            let mut parts = self.parts(&asked[index])?;
            parts.push(Part::Text(candidate_list(&asked[index].item.candidates)));
            let body = self.body(&parts, CANDIDATE_TOKENS, &[]);
            Ok((asked[index].item.id.clone(), body))
        })?;
        let ranked = asked.iter().zip(texts).map(|(asked, text)| ranked(asked, &text));
        Ok(ranked.collect())
    }
}

fn candidate_list(candidates: &[String]) -> String {
    let mut text = "\nReply with one of these, word by word:".to_owned();
    for candidate in candidates {
        let _ = write!(text, "\n- {candidate}");
    }
    text
}

/// 1 for the candidate that an answer means; what means none is kept as it is.
fn ranked(asked: &Asked<'_>, text: &str) -> Ranked {
    let candidates = &asked.item.candidates;
    let mut scores = vec![0.0; candidates.len()];
    match meant_candidate(text, candidates) {
        Some(index) => {
            scores[index] = 1.0;
            Ranked::of(scores)
        }
        None => Ranked { scores, said: Some(text.trim().to_owned()) },
    }
}

/// The file of answers; each of several processes has its own.
fn replies_file(out: &Path, task: &str, share: Option<Share>) -> PathBuf {
    let share = share.map(|share| format!(".part-{}", share.to_string().replace('/', "-of-")));
    out.join(format!("replies_{task}{}.jsonl", share.unwrap_or_default()))
}

/// Whether the same request may be answered later.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::CONFLICT
                | StatusCode::TOO_EARLY
        )
}

/// The pause that a server asks for, in seconds; dates are not read.
fn retry_after(response: &Response) -> Result<Option<Duration>, Trouble> {
    let Some(value) = response.headers().get(RETRY_AFTER) else { return Ok(None) };
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
    let pause = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match pause {
        Some(pause) if pause > RETRY_AFTER_MAX => {
            let (asked, most) = (pause.as_secs(), RETRY_AFTER_MAX.as_secs());
            let status = response.status();
            let what =
                format!("{status}: asks for a pause of {asked} s, at most {most} s are waited");
            Err(Trouble::Lasting(what))
        }
        pause => Ok(pause),
    }
}

async fn read(response: &mut Response) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    loop {
        let chunk = response.chunk().await;
        let chunk = chunk.map_err(|error| Trouble::Passing { what: chain(&error), pause: None })?;
        let Some(chunk) = chunk else { return Ok(body) };
        if body.len() + chunk.len() > REPLY_BYTES_MAX {
            let what = format!("a reply of more than {REPLY_BYTES_MAX} bytes: {}", quoted(&body));
            return Err(Trouble::Lasting(what));
        }
        body.extend_from_slice(&chunk);
    }
}

/// Twice as long each time, a quarter more or less by the request, so that those that failed together do not come back together.
fn pause(key: &str, tries: u32) -> Duration {
    let doubled = PAUSE.saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX));
    let spread = mix_text(mix(u64::from(tries), 4), key) as f64 / u64::MAX as f64;
    doubled.min(PAUSE_MAX).mul_f64(0.75 + 0.5 * spread)
}

/// An error with its causes, without the address, which may hold a secret.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "no answer in time".to_owned()
    } else if error.is_connect() {
        "no connection".to_owned()
    } else {
        "the answer was cut off".to_owned()
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_differ() {
        let within = |tries, seconds: f64| {
            let pause = pause("a", tries).as_secs_f64();
            assert!((0.75 * seconds..=1.25 * seconds).contains(&pause), "{tries}: {pause}");
        };
        for (tries, seconds) in [(0, 0.5), (1, 1.0), (4, 8.0), (7, 60.0), (40, 60.0)] {
            within(tries, seconds);
        }
        assert_ne!(pause("a", 3), pause("b", 3));
    }
}
