//! `GET /metrics`: the counters of a run for Prometheus. One page, plain HTTP, one client at a time,
//! on this machine only unless another address is asked for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::IngestError;
use crate::meter::Meter;

/// Time between two looks for a client: the listener must also see that the run is over.
const POLL: Duration = Duration::from_millis(100);
/// A client that is slower than this is left.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(2);
/// Longest head of a request.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// A server that ends when it is dropped.
pub struct MetricsServer {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves the numbers of `meter` at `address`, e.g. `127.0.0.1:9100`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn start(address: SocketAddr, meter: Arc<Meter>) -> Result<Self, IngestError> {
        let listen = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) =
            listen().map_err(|source| IngestError::MetricsAddress { address, source })?;
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that breaks off costs nobody anything.
                    Ok((client, _)) => drop(answer(client, &meter)),
                    Err(_) => std::thread::sleep(POLL),
                }
            }
        });
        Ok(Self { address, is_over, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it is no reason for another one.
            let _ = thread.join();
        }
    }
}

fn answer(mut client: TcpStream, meter: &Meter) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(CLIENT_TIME_MAX))?;
    client.set_write_timeout(Some(CLIENT_TIME_MAX))?;
    let head = read_head(&mut client)?;
    let line = head.lines().next().unwrap_or("");
    let path = line.split(' ').nth(1).unwrap_or("");
    let (status, body) = match (line.split(' ').next(), path.split('?').next()) {
        (Some("GET"), Some("/metrics")) => ("200 OK", meter.prometheus()),
        (Some("GET"), _) => ("404 Not Found", "expected /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "expected GET\n".to_owned()),
    };
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// The head of a request, as far as it is needed: up to its empty line or the limit.
fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < REQUEST_BYTES_MAX {
        match client.read(&mut piece)? {
            0 => break,
            n => head.extend(&piece[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_metrics_are_served() {
        let meter = Arc::new(Meter::default());
        meter.rows.store(41, Ordering::Relaxed);
        let server = MetricsServer::start("127.0.0.1:0".parse().unwrap(), meter).unwrap();
        let check = |request: &str, status: &str, part: &str| {
            let mut client = TcpStream::connect(server.address()).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with(status) && answer.contains(part), "{request}: {answer}");
        };
        check("GET /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200", "flamingo_ingest_rows_total 41\n");
        check("GET /etc/passwd HTTP/1.1\r\n\r\n", "HTTP/1.1 404", "expected /metrics");
        check("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405", "expected GET");
        let taken = MetricsServer::start(server.address(), Arc::default()).err().unwrap();
        assert!(taken.to_string().contains("127.0.0.1:"), "{taken}");
    }
}
