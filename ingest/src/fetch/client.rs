//! One address to its bytes: redirects, robots.txt, turns, limits, retries, and what the ledger is
//! told.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, Uri, body::Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::Url;

use crate::fetch::budget::Share;
use crate::fetch::cause::{Cause, Fault};
use crate::fetch::connector::{ConnectError, Connector};
use crate::fetch::host::{Host, Hosts, RobotsAnswer};
use crate::fetch::plan::FetchPlan;
use crate::fetch::robots::{self, Robots};
use crate::fetch::{Answer, Body, Wish};
use crate::http::Head;
use crate::ledger::Fetch;
use crate::opt_out;
use crate::plan::OptOutPlan;
use crate::reject::Stage;

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Redirects of robots.txt that are followed (RFC 9309, section 2.3.1.2: at least 5).
const ROBOTS_REDIRECTS_MAX: u32 = 5;
/// Bytes of a body that memory is taken for before they have come.
const FIRST_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of a head.
const HEAD_BYTES_MAX: usize = 256 << 10;

/// Asks for addresses, politely.
pub(crate) struct FetchClient {
    plan: FetchPlan,
    opt_out: OptOutPlan,
    http: Client<HttpsConnector<Connector>, Empty<Bytes>>,
    user_agent: HeaderValue,
    hosts: Hosts,
    active: Semaphore,
}

/// How a request ended that did not give bytes.
enum End {
    /// It failed.
    Fault(Fault),
    /// There is no memory for a body of so many bytes now; nothing is wrong with it.
    NoRoom(u64),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What the attempts at one address have shown.
#[derive(Debug)]
struct Trace {
    final_url: Option<String>,
    status: Option<u16>,
    robots: &'static str,
}

impl FetchClient {
    pub(crate) fn new(plan: &FetchPlan, opt_out: &OptOutPlan) -> Self {
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(plan.host_concurrency as usize)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .build(Connector::with_tls(plan));
        Self {
            plan: plan.clone(),
            opt_out: opt_out.clone(),
            http,
            user_agent: HeaderValue::from_str(&plan.user_agent())
                .expect("agent and contact are ASCII: the plan was checked"),
            hosts: Hosts::default(),
            active: Semaphore::new(plan.concurrency as usize),
        }
    }

    /// Asks for an address, again where that may help, and says what came of it.
    pub(crate) async fn answer(&self, wish: Wish, mut share: Share) -> (Answer, Share) {
        let started = Instant::now();
        let started_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut trace = Trace { final_url: None, status: None, robots: "none" };
        let mut failures: Vec<Cause> = Vec::new();
        let result = loop {
            trace.status = None;
            match self.attempt(&wish, &mut share, &mut trace).await {
                Ok(body) => break Ok(body),
                Err(End::NoRoom(n)) => share.wait(n).await,
                Err(End::Fault(fault)) => {
                    share.shrink(0);
                    let n_before = failures.iter().filter(|&&cause| cause == fault.cause).count();
                    failures.push(fault.cause);
                    let waits_too_long = fault.retry_after.is_some_and(|wait| {
                        wait > Duration::from_secs(self.plan.retry_after_max_s)
                    });
                    if share.is_in_vain()
                        || fault.is_final
                        || waits_too_long
                        || n_before >= fault.cause.retries(&self.plan.retries) as usize
                    {
                        break Err(fault);
                    }
                    sleep(self.backoff(&wish.url, failures.len() as u32)).await;
                }
            }
        };
        let attempts = failures.len() as u32 + u32::from(result.is_ok());
        let n_bytes = result.as_ref().map_or(0, |body| body.bytes.len() as u64);
        let fault = result.as_ref().err();
        let fetch = Fetch {
            key: wish.key,
            url: wish.url,
            final_url: trace.final_url,
            attempts,
            http_status: trace.status,
            cause: fault.map_or("ok", |fault| fault.cause.name()),
            detail: fault.and_then(|fault| fault.detail.as_ref()).map(ToString::to_string),
            robots: trace.robots,
            bytes: n_bytes,
            started_us: started_us.as_micros() as i64,
            elapsed_ms: started.elapsed().as_millis() as u64,
            pair: None,
        };
        (Answer { result: result.map_err(|fault| fault.drop()), fetch }, share)
    }

    /// The pause before an attempt. It differs from row to row, so that rows that failed together do
    /// not come back together, and is the same in every run.
    fn backoff(&self, url: &str, n_failures: u32) -> Duration {
        let doubled = self.plan.backoff_ms.saturating_mul(1 << (n_failures - 1).min(20));
        let whole = doubled.min(self.plan.backoff_max_ms) as f64;
        let mut hasher = DefaultHasher::new();
        (url, n_failures).hash(&mut hasher);
        let part = hasher.finish() as f64 / u64::MAX as f64;
        Duration::from_secs_f64(whole * (0.5 + part / 2.0) / 1000.0)
    }

    /// Follows redirects up to the bytes.
    async fn attempt(
        &self,
        wish: &Wish,
        share: &mut Share,
        trace: &mut Trace,
    ) -> Result<Body, End> {
        let bad_url = |problem: String| Fault::detail(Cause::BadUrl, problem);
        let mut url = Url::parse(wish.url.trim()).map_err(|error| bad_url(error.to_string()))?;
        for _ in 0..=self.plan.redirects_max {
            let host = self.host(&url)?;
            if self.plan.robots {
                self.ask_robots(&host, &url, trace).await?;
            }
            let request = async {
                let response = self.head(&url).await?;
                self.body(response, wish.bytes_max, share, trace).await
            };
            match self.in_turn(&host, request).await? {
                Reply::Body(body) => return Ok(body),
                Reply::Redirect(location) => {
                    url = join(&url, &location)?;
                    trace.final_url = Some(url.to_string());
                }
            }
        }
        let detail = format!("more than {}", self.plan.redirects_max);
        Err(Fault::detail(Cause::Redirects, detail).into())
    }

    /// The host of an address, if the plan lets it be asked.
    fn host(&self, url: &Url) -> Result<Arc<Host>, Fault> {
        if !matches!(url.scheme(), "http" | "https") {
            let detail = format!("scheme {}, expected http or https", url.scheme());
            return Err(Fault::detail(Cause::BadUrl, detail));
        }
        let name = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        if !self.plan.ports.is_empty() && !self.plan.ports.contains(&port) {
            return Err(Fault::detail(Cause::Port, port.to_string()));
        }
        Ok(self.hosts.get(&format!("{name}:{port}"), &self.plan))
    }

    /// Makes one request when it is its turn, within its time. What went wrong is kept with the host.
    async fn in_turn<T>(
        &self,
        host: &Host,
        request: impl Future<Output = Result<T, End>>,
    ) -> Result<T, End> {
        let _turn = host.turn(&self.plan).await?;
        let _active = self.active.acquire().await.expect("it is never closed");
        let end = Instant::now() + Duration::from_millis(self.plan.total_timeout_ms);
        let late = Fault::detail(Cause::Timeout, "not whole within the time for one request");
        let result = timeout_at(end, request).await.unwrap_or(Err(End::Fault(late)));
        match &result {
            Err(End::Fault(fault)) => host.failed(fault, &self.plan),
            _ => host.answered(),
        }
        result
    }

    async fn head(&self, url: &Url) -> Result<Response<Incoming>, Fault> {
        let uri: Uri = without_credentials(url)
            .parse()
            .map_err(|error| Fault::detail(Cause::BadUrl, format!("{error}")))?;
        let request = Request::get(uri)
            .header(header::USER_AGENT, &self.user_agent)
            .header(header::ACCEPT, "image/*,*/*;q=0.5")
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Empty::new())
            .map_err(|error| Fault::detail(Cause::BadUrl, error.to_string()))?;
        let wait = self.plan.connect_timeout_ms + self.plan.read_timeout_ms;
        let sent = timeout(Duration::from_millis(wait), self.http.request(request)).await;
        let late = || Fault::detail(Cause::Timeout, "no head in time");
        sent.map_err(|_| late())?.map_err(|error| send_fault(&error))
    }

    /// The body of a response that is a success, or where it leads.
    async fn body(
        &self,
        response: Response<Incoming>,
        bytes_max: u64,
        share: &mut Share,
        trace: &mut Trace,
    ) -> Result<Reply, End> {
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        trace.status = Some(status);
        if let Some(location) = redirect(status, &parts.headers) {
            return Ok(Reply::Redirect(location));
        }
        if !matches!(status, 200 | 203) {
            let retry_after = retry_after(&parts.headers, SystemTime::now());
            let (cause, status) = (Cause::Status(status), Some(status));
            return Err(Fault { status, retry_after, ..Fault::of(cause) }.into());
        }
        let head = to_head(status, &parts.headers);
        if let Some(drop) = opt_out::in_head(&head, &self.opt_out) {
            let detail = drop.detail.clone().map(Cow::Owned);
            let rule = Some(Box::new((Stage::OptOut, drop)));
            return Err(Fault { detail, rule, ..Fault::of(Cause::OptOut) }.into());
        }
        let length = content_length(&parts.headers);
        let bytes = self.read(body, length, bytes_max, share).await?;
        Ok(Reply::Body(Body { head, bytes }))
    }

    /// Reads a body within its limits: of bytes, of time between bytes, of speed, of memory.
    async fn read(
        &self,
        mut body: Incoming,
        length: Option<u64>,
        bytes_max: u64,
        share: &mut Share,
    ) -> Result<Bytes, End> {
        let too_many = |n: u64| {
            let detail = format!("{n} bytes, expected at most {bytes_max}");
            Fault::detail(Cause::TooManyBytes, detail)
        };
        if let Some(length) = length.filter(|&length| length > bytes_max) {
            return Err(too_many(length).into());
        }
        let mut bytes = BytesMut::new();
        if let Some(length) = length {
            if !share.grow(length) {
                return Err(End::NoRoom(length));
            }
            // A length is only a promise.
            bytes.reserve(length.min(FIRST_BYTES_MAX) as usize);
        }
        let started = Instant::now();
        let pause_max = Duration::from_millis(self.plan.read_timeout_ms);
        loop {
            let frame = match timeout(pause_max, body.frame()).await {
                Err(_) => {
                    let detail = format!("nothing after {} bytes", bytes.len());
                    return Err(Fault::detail(Cause::Timeout, detail).into());
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    let detail = match length {
                        Some(length) => format!("{} bytes of {length}", bytes.len()),
                        None => format!("{} bytes: {error}", bytes.len()),
                    };
                    return Err(Fault::detail(Cause::Truncated, detail).into());
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            let n = (bytes.len() + data.len()) as u64;
            if n > bytes_max {
                return Err(too_many(n).into());
            }
            if !share.grow(n) {
                return Err(End::NoRoom(n.saturating_mul(2).min(bytes_max)));
            }
            bytes.extend_from_slice(&data);
            let elapsed = started.elapsed();
            let n_expected = elapsed.as_secs_f64() * self.plan.bytes_per_second_min as f64;
            if elapsed > pause_max && (n as f64) < n_expected {
                let detail = format!("{n} bytes in {} ms", elapsed.as_millis());
                return Err(Fault::detail(Cause::Slow, detail).into());
            }
        }
        share.settle(bytes.len() as u64);
        Ok(bytes.freeze())
    }

    /// Finds out whether robots.txt allows an address.
    async fn ask_robots(&self, host: &Arc<Host>, url: &Url, trace: &mut Trace) -> Result<(), End> {
        let mut known = host.robots.lock().await;
        let ttl = Duration::from_secs(self.plan.robots_ttl_s);
        let is_fresh = known.as_ref().is_some_and(|(at, answer)| {
            // What could not be read is asked for again sooner; the retries of a row have a pause.
            let ttl = if answer.is_ok() { ttl } else { ttl.min(self.pause_of_failed_robots()) };
            at.elapsed() < ttl
        });
        if !is_fresh {
            let answer = self.robots(url).await;
            if let Ok(robots) = &answer
                && let Some(delay) = robots.crawl_delay
            {
                host.slow_down(delay, &self.plan);
            }
            *known = Some((Instant::now(), answer));
        }
        let answer = known.as_ref().map(|(_, answer)| answer.clone());
        drop(known);
        match answer.expect("it was just asked for") {
            Ok(robots) => {
                let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
                if robots.allows(path) {
                    trace.robots = "allowed";
                    return Ok(());
                }
                trace.robots = "disallowed";
                Err(Fault::of(Cause::Robots).into())
            }
            Err(fault) => {
                trace.robots = "unreachable";
                Err(fault.into())
            }
        }
    }

    fn pause_of_failed_robots(&self) -> Duration {
        Duration::from_millis(self.plan.backoff_max_ms.max(1000))
    }

    /// Asks a host for its robots.txt. Where there is none, all is allowed; where the host has a
    /// problem, nothing is (RFC 9309, section 2.3.1). 429 is taken for a problem of the host.
    async fn robots(&self, url: &Url) -> RobotsAnswer {
        let mut n_failures = 0;
        loop {
            match self.robots_once(url).await {
                Ok(answer) => return Ok(Arc::new(answer)),
                Err(fault) => {
                    n_failures += 1;
                    let waits = fault.retry_after.unwrap_or_default();
                    if n_failures > fault.cause.retries(&self.plan.retries)
                        || waits > Duration::from_secs(self.plan.retry_after_max_s)
                    {
                        return Err(fault.of_robots());
                    }
                    sleep(self.backoff(url.host_str().unwrap_or_default(), n_failures)).await;
                }
            }
        }
    }

    async fn robots_once(&self, url: &Url) -> Result<Robots, Fault> {
        let mut url = join(url, "/robots.txt")?;
        for _ in 0..=ROBOTS_REDIRECTS_MAX {
            let host = self.host(&url)?;
            let request = async {
                let response = self.head(&url).await?;
                Ok(self.robots_reply(response).await?)
            };
            match self.in_turn(&host, request).await {
                Ok(RobotsReply::Rules(robots)) => return Ok(robots),
                Ok(RobotsReply::Redirect(location)) => url = join(&url, &location)?,
                Err(End::Fault(fault)) => return Err(fault),
                Err(End::NoRoom(_)) => unreachable!("robots.txt takes no share of the memory"),
            }
        }
        // As if there were none.
        Ok(Robots::default())
    }

    async fn robots_reply(&self, response: Response<Incoming>) -> Result<RobotsReply, Fault> {
        let (parts, mut body) = response.into_parts();
        let status = parts.status.as_u16();
        if let Some(location) = redirect(status, &parts.headers) {
            return Ok(RobotsReply::Redirect(location));
        }
        match status {
            200..=299 => {}
            429 | 500.. => {
                let retry_after = retry_after(&parts.headers, SystemTime::now());
                let (cause, status) = (Cause::Status(status), Some(status));
                return Err(Fault { status, retry_after, ..Fault::of(cause) });
            }
            _ => return Ok(RobotsReply::Rules(Robots::default())),
        }
        let mut text = Vec::new();
        let pause_max = Duration::from_millis(self.plan.read_timeout_ms);
        while text.len() < robots::BYTES_MAX {
            match timeout(pause_max, body.frame()).await {
                Err(_) => return Err(Fault::detail(Cause::Timeout, "robots.txt is not whole")),
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    return Err(Fault::detail(Cause::Truncated, error.to_string()));
                }
                Ok(Some(Ok(frame))) => text.extend(frame.data_ref().into_iter().flatten()),
            }
        }
        Ok(RobotsReply::Rules(Robots::parse(&text, &self.plan.agent)))
    }
}

impl Fault {
    /// What a row is told whose robots.txt could not be read.
    fn of_robots(self) -> Self {
        let cause = match self.cause {
            Cause::Status(_) | Cause::Protocol | Cause::Truncated => Cause::RobotsUnreachable,
            cause => cause,
        };
        let detail = match (&self.detail, self.status) {
            (Some(detail), _) => format!("robots.txt: {detail}"),
            (None, Some(status)) => format!("robots.txt: status {status}"),
            (None, None) => "robots.txt".to_owned(),
        };
        Self { cause, detail: Some(detail.into()), retry_after: None, is_final: true, ..self }
    }
}

/// What a response is.
enum Reply {
    Body(Body),
    Redirect(String),
}

/// What a response to a request for robots.txt is.
enum RobotsReply {
    Rules(Robots),
    Redirect(String),
}

/// The address of a request: names and passwords of a list are sent to nobody.
fn without_credentials(url: &Url) -> String {
    let mut url = url.clone();
    // They fail for addresses without a host only, which have no credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    url.into()
}

fn join(url: &Url, location: &str) -> Result<Url, Fault> {
    let failed = |error| Fault::detail(Cause::BadUrl, format!("redirect to `{location}`: {error}"));
    url.join(location).map_err(failed)
}

/// Where a response leads to, if it is a redirect with a place.
fn redirect(status: u16, headers: &HeaderMap) -> Option<String> {
    let location = headers.get(header::LOCATION)?;
    let is_redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
    is_redirect.then(|| String::from_utf8_lossy(location.as_bytes()).trim().to_owned())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// When to come back, in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn to_head(status: u16, headers: &HeaderMap) -> Head {
    // The body comes without its chunks.
    let kept = headers.iter().filter(|(name, _)| *name != header::TRANSFER_ENCODING);
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Head { status, headers: kept.map(|(name, value)| (name.to_string(), text(value))).collect() }
}

/// What went wrong before there was a head.
fn send_fault(error: &legacy::Error) -> Fault {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    let mut words = None;
    while let Some(inner) = cause {
        if let Some(ConnectError(fault)) = inner.downcast_ref() {
            return fault.clone();
        }
        words = Some(inner.to_string());
        if let Some(inner) = inner.downcast_ref::<hyper::Error>()
            && inner.is_parse()
        {
            return Fault::detail(Cause::Protocol, inner.to_string());
        }
        cause = inner.source();
    }
    let class = if error.is_connect() { Cause::Tls } else { Cause::Reset };
    Fault::detail(class, words.unwrap_or_else(|| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_a_jitter_that_is_the_same_in_every_run() {
        let plan = FetchPlan { backoff_ms: 100, backoff_max_ms: 1000, ..FetchPlan::default() };
        let client = FetchClient::new(&plan, &OptOutPlan::default());
        let pauses = |url: &str| (1..8).map(|n| client.backoff(url, n)).collect::<Vec<_>>();
        let one = pauses("http://a.example/");
        assert_eq!(one, pauses("http://a.example/"));
        assert_ne!(one, pauses("http://b.example/"));
        for (i, pause) in one.iter().enumerate() {
            let whole = Duration::from_millis((100 << i).min(1000));
            assert!(*pause >= whole / 2 && *pause <= whole, "{i}: {pause:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let check = |value: &str, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
            let found = retry_after(&headers, now).map(|wait| wait.as_secs());
            assert_eq!(found, expected, "{value}");
        };
        check(" 120 ", Some(120));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(7));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("soon", None);
    }

    #[test]
    fn credentials_and_fragments_stay_here() {
        let url = Url::parse("https://user:secret@a.example/x?y#z").unwrap();
        assert_eq!(without_credentials(&url), "https://a.example/x?y");
    }
}
