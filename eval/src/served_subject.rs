//! The model behind an [`Endpoint`] on the media of one benchmark, asked in parallel.
//!
//! Pictures go along as they are; a film as its frames. `<EOC>` becomes a line break. What a model is told first is
//! [`INSTRUCTION`](crate::endpoint::INSTRUCTION), unless it is given another one. Answers are written greedily: there are no beams.
//! Closed tasks list their candidates, and the one that the answer means scores 1, see
//! [`candidate_match`](crate::candidate_match).
//!
//! Every answer is kept in `replies_TASK.jsonl` as it comes, by a digest of its request: nothing is asked twice, whatever the order in
//! which answers came and whenever the evaluation was cut off.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::Path;

use flamingo_dataset::sha256_hex;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::back_off::pause;
use crate::benchmark::Benchmark;
use crate::candidate_match::meant_candidate;
use crate::chat::{Chat, Part, data_url};
use crate::endpoint::{Endpoint, Trouble};
use crate::error::EvalError;
use crate::evaluation::TooLong;
use crate::part::{Part as Share, remove_parts};
use crate::prompt::Piece;
use crate::queue::{Next, Queue};
use crate::samples::{Record, SampleLog};
use crate::subject::{Asked, Ending, ModelCard, OutOfContext, Ranked, Said, Subject, Writing};
use crate::task_file::Decoding;

/// Queries that are put to a server before the next are looked at: many times those that it answers at once.
const BATCH: usize = 256;

/// Tokens in which a candidate can be repeated.
const CANDIDATE_TOKENS: usize = 64;

/// An answer as it came.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Reply {
    /// Digest of the request.
    key: String,
    /// Id of the item that it is about.
    item: String,
    /// The answer.
    text: String,
    /// How it ended, if not by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ending: Option<Ending>,
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
}

/// The model on the media of one benchmark.
pub struct EndpointSubject<'a> {
    endpoint: &'a Endpoint,
    benchmark: &'a Benchmark,
    replies: RefCell<SampleLog<Reply>>,
}

impl<'a> EndpointSubject<'a> {
    /// The model on the media of `benchmark`. Answers are kept in the folder `out`, those of a `share` in a file of its
    /// own; the whole takes the files of shares over.
    ///
    /// # Errors
    /// When a file of earlier answers cannot be read or made.
    pub fn new(
        endpoint: &'a Endpoint,
        benchmark: &'a Benchmark,
        out: &Path,
        share: Option<Share>,
    ) -> Result<Self, EvalError> {
        let name = format!("replies_{}", benchmark.task.name);
        let mut replies =
            SampleLog::open(&out.join(format!("{name}{}.jsonl", Share::suffix(share))))?;
        if share.is_none() {
            replies.take_over(out, &name)?;
            replies.sync()?;
            remove_parts(out, &name)?;
        }
        Ok(Self { endpoint, benchmark, replies: RefCell::new(replies) })
    }

    /// Answers to requests, in their order; an error where one is too long for the model.
    fn answers(
        &self,
        n: usize,
        body: impl Fn(usize) -> Result<(String, String), EvalError>,
    ) -> Result<Vec<Said>, EvalError> {
        let said = self.endpoint.runtime.block_on(self.converse(n, body))?;
        let too_long = said.iter().filter_map(|said| match said.ending {
            Some(Ending::OutOfContext(longest)) => Some(longest),
            _ => None,
        });
        let too_long: Vec<Option<OutOfContext>> = too_long.collect();
        if too_long.is_empty() {
            return Ok(said);
        }
        let longest = too_long.iter().flatten().copied().max_by_key(|it| it.needed);
        let (n_queries, of) = (too_long.len(), n);
        Err(EvalError::OutOfContext(TooLong { longest, n_queries, of }))
    }

    /// Requests under way are as many as the pace allows, and those that wait to be repeated take no place of theirs.
    async fn converse(
        &self,
        n: usize,
        body: impl Fn(usize) -> Result<(String, String), EvalError>,
    ) -> Result<Vec<Said>, EvalError> {
        let (pace, most) = (&self.endpoint.pace, self.endpoint.options.concurrency_max.max(1));
        let mut said = vec![Said::whole(""); n];
        let mut queue = Queue::new(n);
        let mut running = FuturesUnordered::new();
        loop {
            // Those that wait hold their pictures, so nothing new is begun where there are many of them.
            while running.len() < pace.borrow().limit()
                && let Some(next) = queue.next(Instant::now(), most.saturating_sub(running.len()))
            {
                let request = match next {
                    Next::Again(request) => request,
                    Next::Fresh(index) => self.request(index, body(index)?),
                };
                match self.known(&request) {
                    Some(known) => said[request.index] = known,
                    None => running.push(self.attempt(request)),
                }
            }
            let due = queue.due().filter(|_| running.len() < pace.borrow().limit());
            let found = match due {
                Some(due) if running.is_empty() => {
                    sleep_until(due).await;
                    continue;
                }
                Some(due) => match timeout_at(due, running.next()).await {
                    Ok(found) => found,
                    Err(_) => continue,
                },
                None => running.next().await,
            };
            let Some((request, epoch, found)) = found else { return Ok(said) };
            match found {
                Ok(answer) => {
                    pace.borrow_mut().succeeded();
                    said[request.index].clone_from(&answer);
                    self.keep(request, answer)?;
                }
                Err(trouble) => {
                    pace.borrow_mut().failed(epoch);
                    self.put_back(request, trouble, &mut queue)?;
                }
            }
        }
    }

    fn request(&self, index: usize, (item, body): (String, String)) -> Request {
        let key = sha256_hex(format!("{}\n{body}", self.endpoint.place).as_bytes());
        Request { index, item, key, body, tries: 0 }
    }

    /// What a request was answered before.
    fn known(&self, request: &Request) -> Option<Said> {
        let replies = self.replies.borrow();
        let reply = replies.get(&request.key)?;
        Some(Said { text: reply.text.clone(), ending: reply.ending })
    }

    /// Sends a request, and tells in which stretch of the pace it was sent.
    async fn attempt(&self, request: Request) -> (Request, usize, Result<Said, Trouble>) {
        let epoch = self.endpoint.pace.borrow().epoch();
        let found = self.endpoint.send(&request.body).await;
        (request, epoch, found)
    }

    fn keep(&self, request: Request, said: Said) -> Result<(), EvalError> {
        let Request { key, item, .. } = request;
        let reply = Reply { key, item, text: said.text, ending: said.ending };
        self.replies.borrow_mut().append(vec![reply])
    }

    /// The request once more after a pause, or the end of the evaluation.
    fn put_back(
        &self,
        request: Request,
        trouble: Trouble,
        queue: &mut Queue<Request>,
    ) -> Result<(), EvalError> {
        let stop = |problem: String| EvalError::Endpoint {
            address: self.endpoint.place.clone(),
            item: request.item.clone(),
            problem,
        };
        let (what, asked) = match trouble {
            Trouble::Lasting(what) => return Err(stop(what)),
            Trouble::Passing { what, pause } => (what, pause),
        };
        let tries = request.tries + 1;
        if tries > self.endpoint.options.retries {
            return Err(stop(format!("asked {tries} times, at last {what}")));
        }
        let now = Instant::now();
        if let Some(asked) = asked {
            queue.be_quiet(now + asked);
        }
        let due = now + pause(&request.key, request.tries, asked);
        queue.put_back(Request { tries, ..request }, due);
        Ok(())
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

    /// Requests are one by one, whatever is asked beside them.
    fn together(&self) -> usize {
        1
    }

    fn write(&self, asked: &[Asked<'_>], writing: Writing<'_>) -> Result<Vec<Said>, EvalError> {
        self.answers(asked.len(), |index| {
            let parts = self.parts(&asked[index])?;
            let body = self.body(&parts, writing.tokens_max, writing.stop);
            Ok((asked[index].item.id.clone(), body))
        })
    }

    fn rank(&self, asked: &[Asked<'_>], _: Decoding) -> Result<Vec<Ranked>, EvalError> {
        let said = self.answers(asked.len(), |index| {
            let mut parts = self.parts(&asked[index])?;
            parts.push(Part::Text(candidate_list(&asked[index].item.candidates)));
            let body = self.body(&parts, CANDIDATE_TOKENS, &[]);
            Ok((asked[index].item.id.clone(), body))
        })?;
        let ranked = asked.iter().zip(said).map(|(asked, said)| ranked(asked, &said));
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
fn ranked(asked: &Asked<'_>, said: &Said) -> Ranked {
    let candidates = &asked.item.candidates;
    let mut scores = vec![0.0; candidates.len()];
    let meant = meant_candidate(&said.text, candidates);
    let other = meant.is_none().then(|| said.text.trim().to_owned());
    if let Some(index) = meant {
        scores[index] = 1.0;
    }
    Ranked { scores, said: other, ending: said.ending }
}
