//! The address a process answers at: `/metrics` for Prometheus, `/healthz` and `/readyz` for what starts and
//! watches processes. It is open to whoever reaches it, so it says nothing of items, runs or settings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::connections::Bounded;
use super::metrics::Metrics;

/// How long answers under way may take once the server is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Whether a process can do its part now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It cannot, for this reason; it may come to.
    NotReady(String),
}

/// The address cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen at {address}: {source}; give --listen an address of this machine and a free port \
     (port 0 takes any)"
)]
pub struct ListenError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the system says.
    pub source: std::io::Error,
}

/// A server that answers.
#[derive(Debug)]
pub struct Listening {
    /// Where: the address asked for, with the port drawn for port 0.
    pub address: SocketAddr,
    /// Ends when the server has stopped.
    pub task: JoinHandle<()>,
}

/// Answers at `address` until `stop` is cancelled. Once this returns the address is bound; `readiness` is
/// asked anew for each request and must not block.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    stop: CancellationToken,
) -> Result<Listening, ListenError> {
    let wrong = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    let router = router(metrics, readiness);
    let task = tokio::spawn(async move {
        let serving = axum::serve(Bounded::new(listener), router)
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let too_long = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            _ = serving => {}
            () = too_long => {}
        }
    });
    Ok(Listening { address, task })
}

fn router(metrics: Arc<Metrics>, readiness: impl Fn() -> Readiness + Send + Sync + 'static) -> Router {
    let readiness = Arc::new(readiness);
    let metrics = move || {
        let text = metrics.text();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text) }
    };
    let ready = move || {
        let answer = match readiness() {
            Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
            Readiness::NotReady(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n"))
            }
        };
        async move { answer }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::super::connections::{IDLE_TIMEOUT, MAX_CONNECTIONS};
    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    async fn start(
        readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    ) -> (Listening, CancellationToken) {
        let stop = CancellationToken::new();
        let metrics = Metrics::new("consumer");
        (serve(LOOPBACK, metrics, readiness, stop.clone()).await.unwrap(), stop)
    }

    /// Sends one request on a connection of its own; gives the status line and the rest of the answer.
    async fn request(address: SocketAddr, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (status, rest) = answer.split_once("\r\n").unwrap();
        (status.to_owned(), rest.to_owned())
    }

    #[tokio::test]
    async fn metrics_and_health_are_answered_and_nothing_else() {
        let (listening, _stop) = start(|| Readiness::Ready).await;
        let (status, rest) = request(listening.address, "GET /metrics").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(rest.contains("content-type: text/plain; version=0.0.4"), "{rest}");
        assert!(rest.contains("\nwindrow_build_info{role=\"consumer\",version="), "{rest}");
        assert_eq!(request(listening.address, "GET /healthz").await.0, "HTTP/1.1 200 OK");
        assert_eq!(request(listening.address, "GET /").await.0, "HTTP/1.1 404 Not Found");
        assert_eq!(request(listening.address, "POST /metrics").await.0, "HTTP/1.1 405 Method Not Allowed");
    }

    #[tokio::test]
    async fn readiness_is_asked_anew_and_gives_its_reason() {
        let ready = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&ready);
        let readiness = move || {
            if asked.load(Ordering::SeqCst) {
                Readiness::Ready
            } else {
                Readiness::NotReady("no broker".into())
            }
        };
        let (listening, _stop) = start(readiness).await;
        let (status, rest) = request(listening.address, "GET /readyz").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert!(rest.ends_with("\r\n\r\nnot ready: no broker\n"), "{rest}");
        ready.store(true, Ordering::SeqCst);
        assert_eq!(request(listening.address, "GET /readyz").await.0, "HTTP/1.1 200 OK");
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_that_names_it() {
        let (listening, _stop) = start(|| Readiness::Ready).await;
        let address = listening.address;
        let error = serve(address, Metrics::new("run"), || Readiness::Ready, CancellationToken::new()).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
    }

    #[tokio::test]
    async fn stopping_frees_the_address_though_a_request_is_half_sent() {
        let (listening, stop) = start(|| Readiness::Ready).await;
        let mut half = TcpStream::connect(listening.address).await.unwrap();
        half.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        // Once this is answered, the connection before it has been taken up too.
        request(listening.address, "GET /healthz").await;
        stop.cancel();
        tokio::time::timeout(STOP_GRACE * 5, listening.task).await.unwrap().unwrap();
        TcpListener::bind(listening.address).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_beyond_the_bound_waits_for_one_to_end() {
        let (listening, _stop) = start(|| Readiness::Ready).await;
        let mut taken = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(listening.address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
            stream.read_u8().await.unwrap();
            taken.push(stream);
        }
        let waiting = request(listening.address, "GET /healthz");
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
        assert!(early.is_err(), "{early:?}");
        taken.pop();
        assert_eq!(waiting.await.0, "HTTP/1.1 200 OK");
    }

    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        let (listening, _stop) = start(|| Readiness::Ready).await;
        let mut silent = TcpStream::connect(listening.address).await.unwrap();
        silent.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        request(listening.address, "GET /healthz").await;
        tokio::time::pause();
        tokio::time::advance(IDLE_TIMEOUT).await;
        tokio::time::resume();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), silent.read_to_end(&mut rest)).await;
        assert!(closed.is_ok());
    }
}
