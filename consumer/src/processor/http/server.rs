//! A server for tests that does exactly what it is told, byte by byte, and remembers what it was sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// A request as it came; header names in lower case.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) line: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

/// What to do about a request.
pub(super) enum Reply {
    /// Write these bytes and wait for the next request.
    Bytes(Vec<u8>),
    /// Write these bytes over and over until nobody reads them.
    Endless(Vec<u8>),
    /// Write these bytes and close the connection.
    Close(Vec<u8>),
    /// Write nothing until the other side goes away.
    Silence,
}

/// Seen from outside while it runs.
#[derive(Default)]
pub(super) struct Log {
    pub(super) requests: Mutex<Vec<Received>>,
    pub(super) connections: AtomicUsize,
    /// Notified when a request has come in.
    pub(super) received: Notify,
    /// Notified when the other side has closed a connection.
    pub(super) closed: Notify,
}

pub(super) struct Server {
    pub(super) port: u16,
    pub(super) log: Arc<Log>,
    accepting: AbortHandle,
}

type Answer = dyn Fn(&Received) -> Reply + Send + Sync;

impl Server {
    pub(super) async fn start(answer: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Log::default());
        let (seen, answer): (_, Arc<Answer>) = (log.clone(), Arc::new(answer));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, seen.clone(), answer.clone()));
            }
        });
        Self { port, log, accepting: accepting.abort_handle() }
    }

    pub(super) fn requests(&self) -> Vec<Received> {
        self.log.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A whole answer.
pub(super) fn reply(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    Reply::Bytes([head.as_bytes(), body].concat())
}

async fn serve(stream: TcpStream, log: Arc<Log>, answer: Arc<Answer>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let reply = answer(&request);
        log.requests.lock().unwrap().push(request);
        log.received.notify_one();
        match reply {
            Reply::Bytes(bytes) => {
                let _ = stream.write_all(&bytes).await;
            }
            Reply::Endless(bytes) => while stream.write_all(&bytes).await.is_ok() {},
            Reply::Close(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::Silence => {
                let _ = stream.read_u8().await;
            }
        }
    }
    log.closed.notify_one();
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|&read| read > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |line: &String| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let headers: BTreeMap<_, _> = lines[1..].iter().map(header).collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(Received { line: lines[0].clone(), headers, body: String::from_utf8(body).unwrap() })
}
