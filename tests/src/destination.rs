//! An HTTP destination that answers at a pace and remembers every call, to judge what was done twice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    moods: Arc<Moods>,
}

/// What may be changed while it serves.
#[derive(Debug)]
struct Moods {
    delay_micros: AtomicU64,
    is_down: AtomicBool,
    /// The `Retry-After` of one call to come, and when calls were refused so.
    throttle_next: Mutex<Option<u64>>,
    throttled: Mutex<Vec<Instant>>,
    /// From when to when each call that has ended was under way.
    under_way: Mutex<Vec<(Instant, Instant)>>,
}

struct Server {
    fail_every: usize,
    moods: Arc<Moods>,
    calls: Arc<Mutex<Vec<Call>>>,
    count: AtomicUsize,
}

impl Destination {
    /// Starts one on a thread of its own.
    pub fn start(behaviour: Behaviour) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let moods = Arc::new(Moods {
            delay_micros: AtomicU64::new(micros(behaviour.delay)),
            is_down: AtomicBool::new(false),
            throttle_next: Mutex::default(),
            throttled: Mutex::default(),
            under_way: Mutex::default(),
        });
        let server = Arc::new(Server {
            fail_every: behaviour.fail_every,
            moods: Arc::clone(&moods),
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
        Self { address: receiver.recv().unwrap(), calls, moods }
    }

    /// Has each call from now on take this long.
    pub fn set_delay(&self, delay: Duration) {
        self.moods.delay_micros.store(micros(delay), Ordering::Relaxed);
    }

    /// Has every call from now on answered 503, or no longer.
    pub fn set_down(&self, is_down: bool) {
        self.moods.is_down.store(is_down, Ordering::Relaxed);
    }

    /// Has the next call answered 429, with a `Retry-After` of so many seconds.
    pub fn throttle_next(&self, retry_after_seconds: u64) {
        *lock(&self.moods.throttle_next) = Some(retry_after_seconds);
    }

    /// When calls were answered 429.
    pub fn throttled(&self) -> Vec<Instant> {
        lock(&self.moods.throttled).clone()
    }

    /// From when to when each call was under way here, by their ends: from its arrival until just before it was answered.
    pub fn under_way(&self) -> Vec<(Instant, Instant)> {
        lock(&self.moods.under_way).clone()
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every call so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }

    /// How many calls there were so far.
    pub fn call_count(&self) -> usize {
        lock(&self.calls).len()
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
        let began = call.at;
        lock(&self.calls).push(call);
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::time::sleep(Duration::from_micros(self.moods.delay_micros.load(Ordering::Relaxed))).await;
        let fails = number.is_multiple_of(self.fail_every) || self.moods.is_down.load(Ordering::Relaxed);
        let status = match lock(&self.moods.throttle_next).take() {
            Some(seconds) => {
                lock(&self.moods.throttled).push(Instant::now());
                format!("429 Too Many Requests\r\nretry-after: {seconds}")
            }
            None if fails => "503 Service Unavailable".to_owned(),
            None => "200 OK".to_owned(),
        };
        lock(&self.moods.under_way).push((began, Instant::now()));
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
