//! What is known of each host, so that none is asked more often than it can bear: how many requests
//! run, when the next one may start, what robots.txt says, and whether the host answers at all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::fetch::cause::{Cause, Fault};
use crate::fetch::plan::FetchPlan;
use crate::fetch::robots::Robots;

/// Hosts that are remembered; above, those that nobody uses go.
const HOSTS_MAX: usize = 100_000;

/// One host and port.
pub(crate) struct Host {
    slots: Arc<Semaphore>,
    pace: Mutex<Pace>,
    /// What robots.txt says, once it was asked for.
    pub(crate) robots: tokio::sync::Mutex<Option<(Instant, RobotsAnswer)>>,
}

/// What robots.txt says, or why it is not known.
pub(crate) type RobotsAnswer = Result<Arc<Robots>, Fault>;

#[derive(Debug)]
struct Pace {
    /// Time between two requests.
    interval: Duration,
    /// Requests that may go ahead of their time, after a pause.
    burst: u32,
    /// When the next request would start if all kept to the interval.
    next: Instant,
    /// The host asked for a pause up to here.
    not_before: Option<Instant>,
    n_failures: u32,
    /// The host is not asked up to then, and what rows are told.
    closed: Option<(Instant, Cause)>,
}

/// What a request has to do.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Start then.
    At(Instant),
    /// The host is left alone.
    Closed(Cause),
}

impl Pace {
    fn turn(&mut self, now: Instant, pause: Duration) -> Turn {
        match self.closed {
            Some((until, cause)) if now < until => return Turn::Closed(cause),
            // One request finds out whether the host is back.
            Some((_, cause)) => self.closed = Some((now + pause, cause)),
            None => {}
        }
        let ahead = self.interval * self.burst.saturating_sub(1);
        let start = now.max(self.next.checked_sub(ahead).unwrap_or(now));
        self.next = self.next.max(now) + self.interval;
        Turn::At(self.not_before.map_or(start, |pause| start.max(pause)))
    }

    fn failed(&mut self, now: Instant, plan: &FetchPlan) {
        self.n_failures += 1;
        if self.n_failures >= plan.breaker_failures {
            let pause = Duration::from_secs(plan.breaker_pause_s);
            self.closed = Some((now + pause, Cause::HostDown));
        }
    }
}

impl Host {
    fn new(plan: &FetchPlan) -> Self {
        let pace = Pace {
            interval: Duration::from_secs_f64(1.0 / plan.host_per_second),
            burst: plan.host_concurrency,
            next: Instant::now(),
            not_before: None,
            n_failures: 0,
            closed: None,
        };
        Self {
            slots: Arc::new(Semaphore::new(plan.host_concurrency as usize)),
            pace: Mutex::new(pace),
            robots: tokio::sync::Mutex::new(None),
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the host may be asked. It counts as asked until the permit is dropped.
    pub(crate) async fn turn(&self, plan: &FetchPlan) -> Result<OwnedSemaphorePermit, Fault> {
        let slots = Arc::clone(&self.slots);
        let permit = slots.acquire_owned().await.expect("the slots of a host are never closed");
        let pause = Duration::from_secs(plan.breaker_pause_s);
        let turn = self.pace().turn(Instant::now(), pause);
        match turn {
            Turn::Closed(cause) => {
                let fault = Fault::detail(cause, "the host is left alone for a while");
                return Err(Fault { is_final: true, ..fault });
            }
            Turn::At(start) => sleep_until(start).await,
        }
        // Another request may have been told to wait in the meantime.
        loop {
            let not_before = self.pace().not_before;
            match not_before {
                Some(pause) if pause > Instant::now() => sleep_until(pause).await,
                _ => return Ok(permit),
            }
        }
    }

    /// The host has answered.
    pub(crate) fn answered(&self) {
        let mut pace = self.pace();
        pace.n_failures = 0;
        pace.closed = None;
    }

    /// The host has failed, or has asked for a pause.
    pub(crate) fn failed(&self, fault: &Fault, plan: &FetchPlan) {
        let now = Instant::now();
        let mut pace = self.pace();
        if fault.cause.is_of_host() {
            pace.failed(now, plan);
        } else {
            pace.n_failures = 0;
        }
        let Some(wait) = fault.retry_after else { return };
        if wait > Duration::from_secs(plan.retry_after_max_s) {
            pace.closed = Some((now + wait, fault.cause));
        } else {
            pace.not_before = pace.not_before.max(Some(now + wait));
        }
    }

    /// Keeps the pause that robots.txt asks for.
    pub(crate) fn slow_down(&self, crawl_delay: f64, plan: &FetchPlan) {
        let delay = crawl_delay.min(plan.crawl_delay_max_s as f64);
        let mut pace = self.pace();
        let delay = Duration::from_secs_f64(delay);
        if delay > pace.interval {
            (pace.interval, pace.burst) = (delay, 1);
            pace.next = pace.next.max(Instant::now() + delay);
        }
    }
}

/// All hosts.
#[derive(Default)]
pub(crate) struct Hosts {
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

impl Hosts {
    /// The host of a name and port.
    pub(crate) fn get(&self, authority: &str, plan: &FetchPlan) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(authority) {
            return Arc::clone(host);
        }
        if hosts.len() >= HOSTS_MAX {
            hosts.retain(|_, host| Arc::strong_count(host) > 1 || !host.is_idle());
        }
        let host = Arc::new(Host::new(plan));
        hosts.insert(authority.to_owned(), Arc::clone(&host));
        host
    }
}

impl Host {
    /// Whether it can be forgotten: nothing that it asked for is still to be kept.
    fn is_idle(&self) -> bool {
        let (now, pace) = (Instant::now(), self.pace());
        pace.next <= now
            && pace.not_before.is_none_or(|pause| pause <= now)
            && pace.closed.is_none_or(|(until, _)| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(per_second: f64, burst: u32) -> (Instant, Pace) {
        let plan = FetchPlan {
            host_per_second: per_second,
            host_concurrency: burst,
            ..FetchPlan::default()
        };
        let pace = Host::new(&plan).pace.into_inner().unwrap();
        (pace.next, pace)
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_in_turn() {
        let (start, mut pace) = pace(10.0, 3);
        let mut starts = Vec::new();
        for _ in 0..6 {
            match pace.turn(start, Duration::ZERO) {
                Turn::At(at) => starts.push((at - start).as_millis()),
                Turn::Closed(cause) => panic!("{cause:?}"),
            }
        }
        assert_eq!(starts, [0, 0, 0, 100, 200, 300]);
        // After a long pause there is one burst again, not more.
        let later = start + Duration::from_mins(1);
        let n_at_once =
            (0..6).filter(|_| pace.turn(later, Duration::ZERO) == Turn::At(later)).count();
        assert_eq!(n_at_once, 3);
    }

    #[test]
    fn a_host_that_fails_is_left_alone_and_tried_once() {
        let plan = FetchPlan { breaker_failures: 3, breaker_pause_s: 10, ..FetchPlan::default() };
        let (start, mut pace) = pace(1e6, 1);
        let pause = Duration::from_secs(10);
        pace.failed(start, &plan);
        pace.failed(start, &plan);
        assert!(matches!(pace.turn(start, pause), Turn::At(_)));
        pace.failed(start, &plan);
        assert_eq!(pace.turn(start, pause), Turn::Closed(Cause::HostDown));
        let later = start + pause;
        assert!(matches!(pace.turn(later, pause), Turn::At(_)));
        assert_eq!(pace.turn(later, pause), Turn::Closed(Cause::HostDown));
    }
}
