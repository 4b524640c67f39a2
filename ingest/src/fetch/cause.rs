//! What can go wrong when an address is asked for, in classes: each has a name in the ledger, and
//! its own number of retries.

use std::borrow::Cow;
use std::time::Duration;

use crate::fetch::plan::RetryPlan;
use crate::reject::{DropReason, Stage};

/// The class of what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The address cannot be parsed, or is neither http nor https.
    BadUrl,
    /// The port is not among those of the plan.
    Port,
    /// The name leads to no public address.
    PrivateAddress,
    /// robots.txt says no.
    Robots,
    /// robots.txt was asked for and the host had a problem of its own: that means no.
    RobotsUnreachable,
    /// The response says no, see the rules on opting out.
    OptOut,
    /// The name has no address, or no name server answers.
    Dns,
    /// No connection.
    Connect,
    /// No trusted connection.
    Tls,
    /// Nothing came for too long.
    Timeout,
    /// The body came too slowly.
    Slow,
    /// The connection broke before there was a head.
    Reset,
    /// The body ended before its time.
    Truncated,
    /// No HTTP.
    Protocol,
    /// The body is larger than the limit.
    TooManyBytes,
    /// More redirects than the limit.
    Redirects,
    /// The host has failed too often in a row, and was not asked.
    HostDown,
    /// A status that is no success.
    Status(u16),
}

impl Cause {
    /// Its name in the ledger, in rejects and on the command line of `retry`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadUrl => "bad_url",
            Self::Port => "port",
            Self::PrivateAddress => "private_address",
            Self::Robots => "robots",
            Self::RobotsUnreachable => "robots_unreachable",
            Self::OptOut => "opt_out",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Slow => "slow",
            Self::Reset => "reset",
            Self::Truncated => "truncated",
            Self::Protocol => "protocol",
            Self::TooManyBytes => "too_many_bytes",
            Self::Redirects => "redirects",
            Self::HostDown => "host_down",
            Self::Status(401) => "401",
            Self::Status(403) => "403",
            Self::Status(404) => "404",
            Self::Status(410) => "410",
            Self::Status(429) => "429",
            Self::Status(451) => "451",
            Self::Status(200..=299) => "2xx",
            Self::Status(400..=499) => "4xx",
            Self::Status(500..=599) => "5xx",
            Self::Status(_) => "3xx",
        }
    }

    /// All names, for the command line.
    pub const NAMES: &[&str] = &[
        "bad_url",
        "port",
        "private_address",
        "robots",
        "robots_unreachable",
        "opt_out",
        "dns",
        "connect",
        "tls",
        "timeout",
        "slow",
        "reset",
        "truncated",
        "protocol",
        "too_many_bytes",
        "redirects",
        "host_down",
        "401",
        "403",
        "404",
        "410",
        "429",
        "451",
        "2xx",
        "3xx",
        "4xx",
        "5xx",
    ];

    /// How often the same address is asked for again.
    pub(crate) fn retries(self, plan: &RetryPlan) -> u32 {
        match self {
            Self::Dns => plan.dns,
            Self::Connect => plan.connect,
            Self::Tls => plan.tls,
            Self::Timeout => plan.timeout,
            Self::Slow => plan.slow,
            Self::Reset => plan.reset,
            Self::Truncated => plan.truncated,
            Self::Status(429) => plan.too_many_requests,
            Self::Status(500..=599) => plan.server_error,
            _ => 0,
        }
    }

    /// Whether it tells of the host rather than of one page of it.
    pub(crate) fn is_of_host(self) -> bool {
        matches!(
            self,
            Self::Dns
                | Self::Connect
                | Self::Tls
                | Self::Timeout
                | Self::Slow
                | Self::Reset
                | Self::Status(500..=599)
        )
    }
}

/// What went wrong with one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) cause: Cause,
    /// Words for the reader.
    pub(crate) detail: Option<Cow<'static, str>>,
    /// Status of the response, where there was one.
    pub(crate) status: Option<u16>,
    /// What the host says about when to come back.
    pub(crate) retry_after: Option<Duration>,
    /// The rule of another stage that was broken, where it is not the cause itself.
    pub(crate) rule: Option<Box<(Stage, DropReason)>>,
    /// Whether it has been tried again often enough.
    pub(crate) is_final: bool,
}

impl Fault {
    pub(crate) fn of(cause: Cause) -> Self {
        Self { cause, detail: None, status: None, retry_after: None, rule: None, is_final: false }
    }

    pub(crate) fn detail(cause: Cause, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: Some(detail.into()), ..Self::of(cause) }
    }

    /// Why the row is dropped.
    pub(crate) fn drop(&self) -> (Stage, DropReason) {
        if let Some(rule) = &self.rule {
            return (**rule).clone();
        }
        let drop = DropReason {
            measured: self.status.map(f64::from),
            detail: self.detail.as_ref().map(ToString::to_string),
            ..DropReason::because(self.cause.name())
        };
        (Stage::Fetch, drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_on_the_command_line() {
        for status in [200, 204, 301, 400, 401, 403, 404, 410, 418, 429, 451, 500, 503, 599] {
            assert!(Cause::NAMES.contains(&Cause::Status(status).name()), "{status}");
        }
        let plan = RetryPlan::default();
        assert_eq!(Cause::Status(404).retries(&plan), 0);
        assert_eq!(Cause::Status(429).retries(&plan), plan.too_many_requests);
        assert_eq!(Cause::Status(503).retries(&plan), plan.server_error);
    }
}
