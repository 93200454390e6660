//! The floor for the HTTP benchmark: a bare hyper client without any queue.
//!
//! `bare-http PORT CALLS CONCURRENCY` posts CALLS small bodies over kept-alive connections and prints the seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|number| number.parse()).collect::<Result<_, _>>()?;
    let [port, calls, concurrency] = numbers.as_slice() else {
        anyhow::bail!("usage: bare-http PORT CALLS CONCURRENCY");
    };
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let callers: Vec<_> = (0..*concurrency)
        .map(|_| {
            let (client, next, url) =
                (client.clone(), Arc::clone(&next), format!("http://127.0.0.1:{port}/"));
            let calls = *calls;
            tokio::spawn(async move {
                loop {
                    let call = next.fetch_add(1, Ordering::Relaxed);
                    if call >= calls {
                        return anyhow::Ok(());
                    }
                    let body = Full::new(Bytes::from(format!("{{\"n\":{call}}}")));
                    let response = client.request(Request::post(&url).body(body)?).await?;
                    ensure!(response.status().is_success());
                    response.into_body().collect().await?;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await??;
    }
    println!("{:.4}", started.elapsed().as_secs_f64());
    Ok(())
}
