//! `[fetch]` of the plan: who asks, how politely, for how long, and which places are never asked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::IngestError;
use crate::fetch::resolver::name_server;

/// Rules for what is asked for over the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchPlan {
    /// Whether anything is asked for: without, rows that have only an address are rejects.
    pub enabled: bool,
    /// Whether images of web pages that the archives lack are asked for.
    pub pages: bool,
    /// Address or mailbox of those who answer for the requests, sent with each: required.
    pub contact: String,
    /// Name that is sent with each request, and that robots.txt is read for.
    pub agent: String,
    /// Most requests at a time.
    pub concurrency: u32,
    /// Most requests at a time to one host and port.
    pub host_concurrency: u32,
    /// Most requests a second to one host and port.
    pub host_per_second: f64,
    /// Most rows or pages that are asked for ahead of the work.
    pub ahead_items: u32,
    /// Most bytes of bodies that wait for the work; the first in line may go over it.
    pub ahead_bytes_max: u64,
    /// Whether robots.txt is asked for and kept (RFC 9309).
    pub robots: bool,
    /// How long a robots.txt is kept.
    pub robots_ttl_s: u64,
    /// Longest pause between two requests that a `Crawl-delay` of robots.txt can ask for.
    pub crawl_delay_max_s: u64,
    /// Name servers as `IP` or `IP:PORT`; none means those of the system.
    pub dns_servers: Vec<String>,
    /// Most names that are looked up at a time.
    pub dns_concurrency: u32,
    /// How long one name server is waited for.
    pub dns_timeout_ms: u64,
    /// Most names that are remembered, with or without an address.
    pub dns_cache_names: u64,
    /// Addresses of names that need no look-up, as in a hosts file.
    pub hosts: BTreeMap<String, IpAddr>,
    /// Networks that are asked although they are private, e.g. `10.1.0.0/16`.
    pub networks_allowed: Vec<IpNet>,
    /// Ports that are asked; an empty list means any.
    pub ports: Vec<u16>,
    /// Most redirects that are followed for one address.
    pub redirects_max: u32,
    /// How long a connection may take.
    pub connect_timeout_ms: u64,
    /// How long the next bytes may take.
    pub read_timeout_ms: u64,
    /// How long one request may take in all.
    pub total_timeout_ms: u64,
    /// Fewest bytes a second of a body, once it has taken as long as `read_timeout_ms`.
    pub bytes_per_second_min: u64,
    /// Longest `Retry-After` that is waited for; one that is longer ends the row, and the host is
    /// left alone for as long as it says.
    pub retry_after_max_s: u64,
    /// Pause before the second attempt; it doubles with each.
    pub backoff_ms: u64,
    /// Longest pause between two attempts.
    pub backoff_max_ms: u64,
    /// Failures in a row, of the host and not of a page, after which a host is left alone.
    pub breaker_failures: u32,
    /// For how long.
    pub breaker_pause_s: u64,
    /// How often one address is asked for again, by what went wrong.
    pub retries: RetryPlan,
}

/// How often one address is asked for again, by what went wrong. What is not named here, as 404 or
/// 403, is never asked for again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPlan {
    /// The name has no address, or no name server answers.
    pub dns: u32,
    /// No connection.
    pub connect: u32,
    /// No trusted connection.
    pub tls: u32,
    /// Nothing came for too long.
    pub timeout: u32,
    /// The body came too slowly.
    pub slow: u32,
    /// The host says: too many requests.
    #[serde(rename = "429")]
    pub too_many_requests: u32,
    /// The host has a problem of its own.
    #[serde(rename = "5xx")]
    pub server_error: u32,
    /// The connection broke before there was a head.
    pub reset: u32,
    /// The body ended before its time.
    pub truncated: u32,
}

impl Default for RetryPlan {
    fn default() -> Self {
        Self {
            dns: 2,
            connect: 1,
            tls: 0,
            timeout: 1,
            slow: 0,
            too_many_requests: 3,
            server_error: 2,
            reset: 2,
            truncated: 1,
        }
    }
}

impl Default for FetchPlan {
    fn default() -> Self {
        Self {
            enabled: true,
            pages: false,
            contact: String::new(),
            agent: "flamingo-ingest".into(),
            concurrency: 256,
            host_concurrency: 4,
            host_per_second: 10.0,
            ahead_items: 1000,
            ahead_bytes_max: 256 << 20,
            robots: true,
            robots_ttl_s: 24 * 3600,
            crawl_delay_max_s: 30,
            dns_servers: Vec::new(),
            dns_concurrency: 64,
            dns_timeout_ms: 5_000,
            dns_cache_names: 100_000,
            hosts: BTreeMap::new(),
            networks_allowed: Vec::new(),
            ports: vec![80, 443],
            redirects_max: 5,
            connect_timeout_ms: 10_000,
            read_timeout_ms: 10_000,
            total_timeout_ms: 60_000,
            bytes_per_second_min: 1024,
            retry_after_max_s: 60,
            backoff_ms: 1_000,
            backoff_max_ms: 30_000,
            breaker_failures: 20,
            breaker_pause_s: 60,
            retries: RetryPlan::default(),
        }
    }
}

impl FetchPlan {
    /// The first value that is out of range, as an error that names its key.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn validate(&self) -> Result<(), IngestError> {
        let is_token = |c: char| c.is_ascii_alphabetic() || c == '-' || c == '_';
        let is_mark = |c: char| c.is_ascii_graphic() && !"()\\".contains(c) || c == ' ';
        let server = self.dns_servers.iter().find(|server| name_server(server).is_none());
        let positive = "at least 1";
        let rules = [
            (
                !self.agent.is_empty() && self.agent.chars().all(is_token),
                "fetch.agent",
                self.agent.clone(),
                "letters, `-` and `_`, as robots.txt names agents",
            ),
            (
                self.contact.chars().all(is_mark),
                "fetch.contact",
                self.contact.clone(),
                "an address or mailbox in ASCII without brackets",
            ),
            (
                self.host_per_second > 0.0 && self.host_per_second <= 1e6,
                "fetch.host_per_second",
                self.host_per_second.to_string(),
                "above 0 and at most 1000000",
            ),
            (
                server.is_none(),
                "fetch.dns_servers",
                server.cloned().unwrap_or_default(),
                "IP or IP:PORT",
            ),
            (self.concurrency > 0, "fetch.concurrency", "0".into(), positive),
            (self.host_concurrency > 0, "fetch.host_concurrency", "0".into(), positive),
            (self.ahead_items > 0, "fetch.ahead_items", "0".into(), positive),
            (self.dns_concurrency > 0, "fetch.dns_concurrency", "0".into(), positive),
            (self.connect_timeout_ms > 0, "fetch.connect_timeout_ms", "0".into(), positive),
            (self.read_timeout_ms > 0, "fetch.read_timeout_ms", "0".into(), positive),
            (self.total_timeout_ms > 0, "fetch.total_timeout_ms", "0".into(), positive),
            (self.breaker_failures > 0, "fetch.breaker_failures", "0".into(), positive),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, key, value, expected)) => Err(IngestError::PlanValue { key, value, expected }),
        }
    }

    /// What is sent as `User-Agent`.
    pub fn user_agent(&self) -> String {
        format!("{}/{} (+{})", self.agent, env!("CARGO_PKG_VERSION"), self.contact)
    }
}
