//! Connections to addresses that were resolved and checked.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::HttpsConnector;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use crate::fetch::cause::{Cause, Fault};
use crate::fetch::plan::FetchPlan;
use crate::fetch::resolver::Resolver;

/// Most addresses of one host that are tried.
const ADDRESSES_MAX: usize = 4;

/// Connects to the host of an address, through the shared resolver.
#[derive(Clone)]
pub(crate) struct Connector {
    resolver: Arc<Resolver>,
    timeout: Duration,
}

/// A [`Fault`] as an error, for the layers between.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.cause.name())]
pub(crate) struct ConnectError(pub(crate) Fault);

impl Connector {
    /// A connector with TLS above it, which trusts the certificates that the system trusts.
    pub(crate) fn with_tls(plan: &FetchPlan) -> HttpsConnector<Self> {
        let connector = Self {
            resolver: Arc::new(Resolver::new(plan)),
            timeout: Duration::from_millis(plan.connect_timeout_ms),
        };
        let mut roots = RootCertStore::empty();
        // A certificate that cannot be read is one that is not trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the cipher suites of TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        HttpsConnector::from((connector, tls))
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let addresses = self.resolver.addresses(host).await.map_err(ConnectError)?;
        let mut fault = Fault::of(Cause::Connect);
        for ip in addresses.into_iter().take(ADDRESSES_MAX) {
            let address = SocketAddr::new(ip, port);
            match timeout(self.timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests are small and one write each.
                    let _ = stream.set_nodelay(true);
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => fault = Fault::detail(Cause::Connect, error.to_string()),
                Err(_) => fault = Fault::detail(Cause::Timeout, "no connection in time"),
            }
        }
        Err(ConnectError(fault))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
