//! Names to addresses that may be connected to. All requests share one resolver with its cache, of
//! names with and without an address, and one limit of look-ups at a time: the resolver of a system
//! is most often what fails first when millions of names are looked up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use ipnet::IpNet;
use tokio::sync::Semaphore;

use crate::fetch::address::is_allowed;
use crate::fetch::cause::{Cause, Fault};
use crate::fetch::plan::FetchPlan;

/// How long a name without an address is remembered at least, where the zone does not say.
const NEGATIVE_TTL_MIN: Duration = Duration::from_secs(30);
/// Port of name servers.
const DNS_PORT: u16 = 53;

/// The shared resolver.
pub(crate) struct Resolver {
    /// Or why there is none.
    dns: Result<TokioResolver, String>,
    queries: Semaphore,
    hosts: BTreeMap<String, IpAddr>,
    networks_allowed: Vec<IpNet>,
}

impl Resolver {
    /// A resolver of the name servers of the plan, else of the system.
    pub(crate) fn new(plan: &FetchPlan) -> Self {
        let hosts = plan.hosts.iter().map(|(name, ip)| (name.to_lowercase(), *ip)).collect();
        Self {
            dns: dns(plan),
            queries: Semaphore::new(plan.dns_concurrency as usize),
            hosts,
            networks_allowed: plan.networks_allowed.clone(),
        }
    }

    /// The addresses of a host that may be connected to, the first to try first. What is checked
    /// here is what is connected to, so a name cannot change its address in between.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Fault> {
        let found = self.all_addresses(host).await?;
        let allowed = |ip: &IpAddr| is_allowed(*ip, &self.networks_allowed);
        let addresses: Vec<_> = found.iter().copied().filter(allowed).collect();
        match (addresses.is_empty(), found.first()) {
            (false, _) => Ok(addresses),
            (true, Some(ip)) => Err(Fault::detail(Cause::PrivateAddress, ip.to_string())),
            (true, None) => Err(Fault::detail(Cause::Dns, "the name has no address")),
        }
    }

    async fn all_addresses(&self, host: &str) -> Result<Vec<IpAddr>, Fault> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse() {
            return Ok(vec![ip]);
        }
        if let Some(ip) = self.hosts.get(host) {
            return Ok(vec![*ip]);
        }
        let failed = |problem: String| Fault::detail(Cause::Dns, problem);
        let dns = self.dns.as_ref().map_err(|problem| failed(problem.clone()))?;
        let _query = self.queries.acquire().await.map_err(|_| failed("shutting down".into()))?;
        // A last dot keeps the search domains of the system out of names of the web.
        let name = format!("{}.", host.trim_end_matches('.'));
        let found = dns.lookup_ip(name).await.map_err(|error| failed(error.to_string()))?;
        Ok(found.iter().collect())
    }
}

fn dns(plan: &FetchPlan) -> Result<TokioResolver, String> {
    let mut builder = if plan.dns_servers.is_empty() {
        TokioResolver::builder_tokio()
            .map_err(|error| format!("the system names no name server: {error}"))?
    } else {
        let servers = plan.dns_servers.iter().filter_map(|server| name_server(server));
        let servers = servers.map(server_config).collect();
        let config = ResolverConfig::from_name_servers(servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = Duration::from_millis(plan.dns_timeout_ms);
    // Retries are counted by cause, in one place.
    options.attempts = 0;
    options.cache_size = plan.dns_cache_names;
    options.negative_min_ttl = Some(NEGATIVE_TTL_MIN);
    options.max_active_requests = plan.dns_concurrency as usize;
    options.use_hosts_file = ResolveHosts::Always;
    // One query for most names: few hosts of the web lack version 4.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    builder.build().map_err(|error| error.to_string())
}

fn server_config(server: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.into())
}

/// A name server as the plan writes it.
pub(crate) fn name_server(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, DNS_PORT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_addresses_with_or_without_port() {
        for (text, expected) in [
            ("9.9.9.9", Some("9.9.9.9:53")),
            ("127.0.0.1:5353", Some("127.0.0.1:5353")),
            ("2620:fe::fe", Some("[2620:fe::fe]:53")),
            ("[::1]:5353", Some("[::1]:5353")),
            ("dns.example", None),
        ] {
            assert_eq!(name_server(text).map(|server| server.to_string()).as_deref(), expected);
        }
    }
}
