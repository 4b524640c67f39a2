//! A server on this machine that answers as it is told, and remembers what it was asked.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// What a server does with a request.
pub(crate) enum Reaction {
    /// An answer.
    Says(String),
    /// A status, headers with their line ends, a body.
    Status(&'static str, &'static str, Vec<u8>),
    /// A body of status 200.
    Body(Vec<u8>),
    /// The connection ends inside the head.
    HangUp,
    /// Nothing, until the client goes away.
    Silence,
}

/// What a request was.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: Value,
}

pub(crate) struct Server {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    most_at_a_time: Arc<AtomicUsize>,
}

impl Server {
    /// Listens on a free port. `react` gets the request and how often one with this body came before.
    pub(crate) fn start(react: impl Fn(&Asked, usize) -> Reaction + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let server = Self { address, asked: asked.clone(), most_at_a_time: most.clone() };
        let react = Arc::new(react);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (react, asked) = (react.clone(), asked.clone());
                let (now, most) = (now.clone(), most.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(request) = read(&mut stream) else { return };
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let before = {
                        let mut all = asked.lock().unwrap();
                        let same = |it: &&Asked| it.body == request.body;
                        let before = all.iter().filter(same).count();
                        all.push(request.clone());
                        before
                    };
                    let reaction = react(&request, before);
                    now.fetch_sub(1, Ordering::SeqCst);
                    answer(&mut stream, reaction);
                });
            }
        });
        server
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn most_at_a_time(&self) -> usize {
        self.most_at_a_time.load(Ordering::SeqCst)
    }
}

fn read(stream: &mut TcpStream) -> Option<Asked> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let n = stream.read(&mut buffer).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&buffer[..n]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let length: usize = length.unwrap();
        if bytes.len() >= end + 4 + length {
            let body = serde_json::from_slice(&bytes[end + 4..end + 4 + length]).unwrap();
            return Some(Asked { head, body });
        }
    }
}

fn answer(stream: &mut TcpStream, reaction: Reaction) {
    let mut send = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        // A client that had enough goes away.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    match reaction {
        Reaction::Says(text) => {
            let message = json!({ "role": "assistant", "content": text });
            let body = json!({ "choices": [{ "message": message, "finish_reason": "stop" }] });
            send("200 OK", "", body.to_string().as_bytes());
        }
        Reaction::Status(status, headers, body) => send(status, headers, &body),
        Reaction::Body(body) => send("200 OK", "", &body),
        Reaction::HangUp => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-");
        }
        Reaction::Silence => {
            let _ = stream.read(&mut [0; 1]);
        }
    }
}
