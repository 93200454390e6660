//! An HTTP destination that answers at a pace and remembers every call, to judge what was done twice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How a destination behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Behaviour {
    /// How long each call takes.
    pub delay: Duration,
    /// Every call whose number is a multiple of this is answered 503; 0 for none.
    pub fail_every: usize,
}

/// One call, as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// The `Idempotency-Key` header.
    pub key: String,
    /// The `X-Caller` header, where the job has one.
    pub caller: String,
    /// When it arrived.
    pub at: Instant,
    /// The body.
    pub body: Vec<u8>,
}

/// A destination on loopback. It ends with its process.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Where it listens.
    pub address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    delay_micros: Arc<AtomicU64>,
    is_down: Arc<AtomicBool>,
}

struct Server {
    fail_every: usize,
    delay_micros: Arc<AtomicU64>,
    is_down: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    count: AtomicUsize,
}

impl Destination {
    /// Starts one on a thread of its own.
    pub fn start(behaviour: Behaviour) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let delay_micros = Arc::new(AtomicU64::new(micros(behaviour.delay)));
        let is_down = Arc::new(AtomicBool::new(false));
        let server = Arc::new(Server {
            fail_every: behaviour.fail_every,
            delay_micros: Arc::clone(&delay_micros),
            is_down: Arc::clone(&is_down),
            calls: Arc::clone(&calls),
            count: AtomicUsize::new(0),
        });
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let server = Arc::clone(&server);
                    tokio::spawn(async move { server.serve(stream).await });
                }
            });
        });
        Self { address: receiver.recv().unwrap(), calls, delay_micros, is_down }
    }

    /// Has each call from now on take this long.
    pub fn set_delay(&self, delay: Duration) {
        self.delay_micros.store(micros(delay), Ordering::Relaxed);
    }

    /// Has every call from now on answered 503, or no longer.
    pub fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every call so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many calls there were so far.
    pub fn call_count(&self) -> usize {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Server {
    /// Answers the requests of one connection, one after another, until it ends.
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut received = Vec::new();
        let mut block = [0u8; 8192];
        loop {
            while let Some((head, end)) = request(&received) {
                let value = |name: &str| header(&received[..head], name).unwrap_or_default();
                let (key, caller) = (value("idempotency-key"), value("x-caller"));
                let body = received[head..end].to_vec();
                received.drain(..end);
                let answer = self.answer(Call { key, caller, at: Instant::now(), body }).await;
                stream.write_all(answer.as_bytes()).await?;
            }
            match stream.read(&mut block).await? {
                0 => return Ok(()),
                length => received.extend_from_slice(&block[..length]),
            }
        }
    }

    async fn answer(&self, call: Call) -> String {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::time::sleep(Duration::from_micros(self.delay_micros.load(Ordering::Relaxed))).await;
        let fails = number.is_multiple_of(self.fail_every) || self.is_down.load(Ordering::Relaxed);
        let status = if fails { "503 Service Unavailable" } else { "200 OK" };
        let body = r#"{"ok":true}"#;
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

fn micros(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)
}

/// Where the first request in `received` has its body, and where it ends, if it is there whole.
fn request(received: &[u8]) -> Option<(usize, usize)> {
    let head = received.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let length = header(&received[..head], "content-length").and_then(|length| length.parse().ok());
    let end = head + length.unwrap_or(0usize);
    (received.len() >= end).then_some((head, end))
}

fn header(head: &[u8], name: &str) -> Option<String> {
    String::from_utf8_lossy(head).lines().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
