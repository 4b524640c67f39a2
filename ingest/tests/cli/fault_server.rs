//! A web on loopback that misbehaves as asked: hosts by name, faults by path.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) user_agent: String,
    pub(crate) at: Instant,
}

/// What the server does with a request.
pub(crate) enum Deed {
    /// Sends bytes and keeps the connection.
    Send(Vec<u8>),
    /// Sends bytes and closes the connection.
    Close(Vec<u8>),
    /// Sends bytes and breaks the connection.
    Reset(Vec<u8>),
    /// Sends bytes, then says nothing until the other side gives up.
    Hang(Vec<u8>),
    /// Sends bytes, then one byte at a time.
    Trickle(Vec<u8>, Duration),
    /// Sends bytes and then the same piece for ever.
    Endless(Vec<u8>, Vec<u8>),
    /// Waits, then sends.
    Late(Duration, Vec<u8>),
}

/// The server; its threads end with the process.
pub(crate) struct FaultServer {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    busiest: Arc<Mutex<HashMap<String, (usize, usize)>>>,
    pub(crate) n_connections: Arc<AtomicUsize>,
}

impl FaultServer {
    /// Starts to answer with `deed(host, path, how often this was asked before)`.
    pub(crate) fn start(deed: impl Fn(&str, &str, usize) -> Deed + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self {
            address,
            seen: Arc::default(),
            busiest: Arc::default(),
            n_connections: Arc::default(),
        };
        let deed = Arc::new(deed);
        let (seen, busiest) = (Arc::clone(&server.seen), Arc::clone(&server.busiest));
        let n_connections = Arc::clone(&server.n_connections);
        spawn(move || {
            for stream in listener.incoming().flatten() {
                n_connections.fetch_add(1, Ordering::Relaxed);
                let (deed, seen) = (Arc::clone(&deed), Arc::clone(&seen));
                let busiest = Arc::clone(&busiest);
                spawn(move || serve(stream, &*deed, &seen, &busiest));
            }
        });
        server
    }

    /// All requests so far, robots.txt included.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How often a path of a host was asked for.
    pub(crate) fn count(&self, host: &str, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.host == host && seen.path == path).count()
    }

    /// Most requests of each host that ran at one time.
    pub(crate) fn busiest(&self) -> HashMap<String, usize> {
        self.busiest.lock().unwrap().iter().map(|(host, (_, most))| (host.clone(), *most)).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    deed: &dyn Fn(&str, &str, usize) -> Deed,
    seen: &Mutex<Vec<Seen>>,
    busiest: &Mutex<HashMap<String, (usize, usize)>>,
) {
    stream.set_nodelay(true).unwrap();
    while let Some(head) = read_head(&mut stream) {
        let path = head.split(' ').nth(1).unwrap_or("").to_owned();
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_lowercase().starts_with(name));
            line.map_or(String::new(), |line| line[name.len()..].trim().to_owned())
        };
        let host = header("host:");
        let host = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name).to_owned();
        let n_before = {
            let mut seen = seen.lock().unwrap();
            let same = |one: &&Seen| one.host == host && one.path == path;
            let n_before = seen.iter().filter(same).count();
            let (host, path) = (host.clone(), path.clone());
            let user_agent = header("user-agent:");
            seen.push(Seen { host, path, user_agent, at: Instant::now() });
            n_before
        };
        {
            let mut busiest = busiest.lock().unwrap();
            let (now, most) = busiest.entry(host.clone()).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        // The last byte of the request is read late, since closing with it unread breaks the connection.
        let deed = deed(&host, &path, n_before);
        if !matches!(deed, Deed::Reset(_)) {
            let _ = stream.read_exact(&mut [0; 1]);
        }
        // It is over for the client once it has the last byte.
        let done = || busiest.lock().unwrap().get_mut(&host).unwrap().0 -= 1;
        match deed {
            Deed::Send(bytes) => {
                done();
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Deed::Late(wait, bytes) => {
                sleep(wait);
                done();
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Deed::Close(bytes) => {
                done();
                let _ = stream.write_all(&bytes);
                return;
            }
            Deed::Reset(bytes) => {
                done();
                let _ = stream.write_all(&bytes);
                sleep(Duration::from_millis(20));
                return;
            }
            Deed::Hang(bytes) => {
                done();
                let _ = stream.write_all(&bytes);
                let _ = stream.read(&mut [0; 64]);
                return;
            }
            Deed::Trickle(bytes, pause) => {
                done();
                let _ = stream.write_all(&bytes);
                while stream.write_all(b"x").is_ok() {
                    sleep(pause);
                }
                return;
            }
            Deed::Endless(bytes, piece) => {
                done();
                let _ = stream.write_all(&bytes);
                while stream.write_all(&piece).is_ok() {}
                return;
            }
        }
    }
}

/// Reads a request up to its last byte, which stays unread.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
        if head == [0x16] {
            // Somebody wants to speak TLS.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            return None;
        }
    }
    String::from_utf8(head).ok()
}

/// A whole response.
pub(crate) fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A response that is a picture.
pub(crate) fn picture(bytes: &[u8]) -> Deed {
    Deed::Send(response("200 OK", "Content-Type: image/jpeg\r\n", bytes))
}

/// A response without a body.
pub(crate) fn status(status: &str, headers: &str) -> Deed {
    Deed::Send(response(status, headers, b""))
}

/// A name server on loopback.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    queries: Arc<Mutex<Vec<String>>>,
}

/// What a name server says of a name.
pub(crate) enum Record {
    Address([u8; 4]),
    NoSuchName,
    Nothing,
}

impl NameServer {
    /// Starts to answer.
    pub(crate) fn start(record: impl Fn(&str) -> (Duration, Record) + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let queries = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&queries);
        spawn(move || {
            let mut packet = [0; 512];
            while let Ok((n, peer)) = socket.recv_from(&mut packet) {
                let query = &packet[..n];
                let (name, end) = question(query);
                let is_a = query[end..end + 2] == [0, 1];
                log.lock().unwrap().push(name.clone());
                let (wait, record) = record(&name);
                let Some(answer) = dns_answer(query, end, is_a, &record) else { continue };
                let socket = socket.try_clone().unwrap();
                spawn(move || {
                    sleep(wait);
                    socket.send_to(&answer, peer).unwrap();
                });
            }
        });
        Self { address, queries }
    }

    /// How often a name was asked for.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.queries.lock().unwrap().iter().filter(|query| *query == name).count()
    }
}

/// The name of a query, and where its type stands.
fn question(query: &[u8]) -> (String, usize) {
    let mut at = 12;
    let mut labels = Vec::new();
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    (labels.join("."), at + 1)
}

fn dns_answer(query: &[u8], end: usize, is_a: bool, record: &Record) -> Option<Vec<u8>> {
    let (code, address) = match record {
        Record::Address(address) => (0, is_a.then_some(*address)),
        Record::NoSuchName => (3, None),
        Record::Nothing => return None,
    };
    let mut answer = query[..2].to_vec();
    let (n_answers, n_authorities) = (u8::from(address.is_some()), u8::from(address.is_none()));
    answer.extend([0x81, 0x80 | code, 0, 1, 0, n_answers, 0, n_authorities, 0, 0]);
    answer.extend(&query[12..end + 4]);
    if address.is_none() {
        // The start of the root's authority, a minute, 22 bytes: two empty names and five numbers.
        answer.extend([0, 0, 6, 0, 1, 0, 0, 0, 60, 0, 22, 0, 0]);
        answer.extend([0, 0, 0, 60].repeat(5));
    }
    if let Some(address) = address {
        // The name of the question, type A, class IN, an hour, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4]);
        answer.extend(address);
    }
    Some(answer)
}
