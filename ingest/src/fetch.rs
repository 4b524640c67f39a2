//! Images that a list or a page only names, asked for over HTTP(S): politely, within limits, and
//! ahead of the work that needs them.
//!
//! One resolver with its cache, one set of connections and one record of every host serve the whole
//! run. A host is asked so many times at once and a second as the plan allows, only for what its
//! robots.txt allows, and again only where that may help. Bodies stay under their limit of bytes and
//! time, and come from public addresses only. Every answer becomes a row of the ledger.
//!
//! [`Fetcher::ahead`] is the stage of a run: items go in, and come out in the same order with their
//! answers. In reading order: [`plan`], [`cause`], `address`, `resolver`, `connector`, `robots`,
//! `host`, `budget`, `client`.

mod address;
mod budget;
pub mod cause;
mod client;
mod connector;
mod host;
pub mod plan;
pub(crate) mod resolver;
mod robots;

use std::borrow::Cow;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Scope};

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::error::IngestError;
use crate::http::{self, Head};
use crate::ledger::Fetch;
use crate::ordered::Weigh;
use crate::plan::BuildPlan;
use crate::reject::{DropReason, Stage};

use budget::{Budget, Share};
use client::FetchClient;

/// Threads that wait for the network: they move bytes and do nothing else.
const THREADS_MAX: usize = 4;

/// An address that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Identifier of the row that wants it.
    pub key: String,
    /// The address.
    pub url: String,
    /// Most bytes of the body.
    pub bytes_max: u64,
}

/// What came of a wish.
#[derive(Debug)]
pub struct Answer {
    /// The bytes, or why there are none.
    pub result: Result<Body, (Stage, DropReason)>,
    /// The row of the ledger.
    pub fetch: Fetch,
}

/// The body of a response that was a success.
#[derive(Debug)]
pub struct Body {
    /// Status and headers.
    pub head: Head,
    /// As it came: its content may be encoded.
    pub bytes: Bytes,
}

impl Body {
    /// The content: some servers encode it although nobody asked for that.
    ///
    /// # Errors
    /// When it is larger than `bytes_max` or damaged.
    pub fn decoded(&self, bytes_max: u64) -> Result<Bytes, (Stage, DropReason)> {
        match http::decode_body(&self.head, &self.bytes, bytes_max) {
            Ok(Cow::Borrowed(_)) => Ok(self.bytes.clone()),
            Ok(Cow::Owned(bytes)) => Ok(bytes.into()),
            Err(drop) => Err((Stage::Fetch, drop)),
        }
    }
}

/// Asks for what the items of a run want. Nothing is started before the first wish.
pub struct Fetcher {
    plan: BuildPlan,
    started: OnceLock<Started>,
}

struct Started {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    client: Arc<FetchClient>,
}

impl Drop for Started {
    fn drop(&mut self) {
        // Requests that nobody waits for any more are dropped, not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fetcher {
    /// A fetcher with the rules of a plan.
    pub fn new(plan: &BuildPlan) -> Self {
        Self { plan: plan.clone(), started: OnceLock::new() }
    }

    /// The client and its threads, once something is wanted.
    fn start(&self) -> Result<&Started, IngestError> {
        let fetch = &self.plan.fetch;
        if fetch.contact.trim().is_empty() {
            return Err(IngestError::FetchContact);
        }
        Ok(self.started.get_or_init(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            let runtime = Builder::new_multi_thread()
                .worker_threads((processors / 8).clamp(1, THREADS_MAX))
                .thread_name("fetch")
                .enable_all()
                .build()
                .expect("the operating system lets this process start threads");
            let client = {
                let _inside = runtime.enter();
                FetchClient::new(fetch, &self.plan.opt_out)
            };
            Started { runtime: Some(runtime), client: Arc::new(client) }
        }))
    }

    /// The items in order, each with the answers to its wishes in their order; `wishes` takes an item
    /// apart into what goes on and what is wanted for it. A thread of `scope`
    /// takes items while earlier ones are waited for: at most `fetch.ahead_items`, and no more while
    /// bodies of half of `fetch.ahead_bytes_max` wait.
    pub fn ahead<'scope, T: 'scope, U: Send + 'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        items: impl Iterator<Item = Result<T, IngestError>> + Send + 'scope,
        wishes: impl Fn(T) -> (U, Vec<Wish>) + Send + 'scope,
    ) -> Ahead<U> {
        let budget = Budget::new(self.plan.fetch.ahead_bytes_max);
        let (to_queue, queue) = sync_channel(self.plan.fetch.ahead_items as usize);
        let ahead = Ahead { queue, budget: Arc::clone(&budget), n_taken: 0 };
        scope.spawn(move || {
            for (item_idx, item) in (0..).zip(items) {
                let waiting = item.and_then(|item| {
                    let (item, wishes) = wishes(item);
                    Ok((item, self.ask(wishes, &budget, item_idx)?))
                });
                let is_last = waiting.is_err();
                // Sending fails where the run has ended early.
                if to_queue.send(waiting).is_err() || is_last || budget.is_closed() {
                    return;
                }
            }
        });
        ahead
    }

    fn ask(
        &self,
        wishes: Vec<Wish>,
        budget: &Arc<Budget>,
        item: u64,
    ) -> Result<Vec<oneshot::Receiver<(Answer, Share)>>, IngestError> {
        if wishes.is_empty() {
            return Ok(Vec::new());
        }
        let started = self.start()?;
        let runtime = started.runtime.as_ref().expect("it is there until it is dropped");
        let ask = |wish| {
            let share = runtime.block_on(budget.start(item));
            let (to_item, answer) = oneshot::channel();
            let client = Arc::clone(&started.client);
            runtime.spawn(async move {
                // Sending fails where the run has ended early.
                let _ = to_item.send(client.answer(wish, share).await);
            });
            answer
        };
        Ok(wishes.into_iter().map(ask).collect())
    }
}

/// An item with the answers to its wishes.
#[derive(Debug)]
pub struct Asked<T> {
    /// The item.
    pub item: T,
    /// What came of its wishes, in their order.
    pub answers: Vec<Answer>,
}

impl<T: Weigh> Weigh for Asked<T> {
    fn weight(&self) -> u64 {
        let bytes = |answer: &Answer| answer.result.as_ref().map_or(0, |body| body.bytes.len());
        self.item.weight() + self.answers.iter().map(bytes).sum::<usize>() as u64
    }
}

/// Items with their answers, in order.
pub struct Ahead<T> {
    queue: Receiver<Result<Waiting<T>, IngestError>>,
    budget: Arc<Budget>,
    n_taken: u64,
}

/// An item and where its answers will come from.
type Waiting<T> = (T, Vec<oneshot::Receiver<(Answer, Share)>>);

impl<T> Iterator for Ahead<T> {
    type Item = Result<Asked<T>, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        let waiting = self.queue.recv().ok()?;
        let asked = waiting.map(|(item, answers)| {
            let answer = |answer: oneshot::Receiver<_>| {
                let (answer, _share): (Answer, Share) =
                    answer.blocking_recv().expect("a request ends with an answer");
                answer
            };
            Asked { item, answers: answers.into_iter().map(answer).collect() }
        });
        self.budget.left(self.n_taken);
        self.n_taken += 1;
        Some(asked)
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        self.budget.close();
    }
}
