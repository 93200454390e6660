//! The client all http stages of a process share, and how its errors are told apart.

use std::error::Error;
use std::io;
use std::time::Duration;

use super::super::{Attempt, Retry};

/// How long a connection may take to be made, TLS included. A lost SYN must not cost the whole timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How many headers, and how many bytes of them under HTTP/2, an answer may have.
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// A client that follows no redirect, asks no proxy, and keeps connections open for reuse: as many as were ever
/// in use at once, which the destinations' permits bound.
pub(crate) fn client() -> Result<reqwest::Client, reqwest::Error> {
    // Fails only if the process has a provider already, and then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("windrow/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .http1_max_headers(MAX_HEADERS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .build()
}

/// The end of an attempt whose call got no answer, or only a part of one. The message holds no part of the URL.
pub(super) fn no_answer(error: reqwest::Error) -> Attempt {
    let error = error.without_url();
    let (class, retry) = if error.is_builder() {
        ("request", Retry::Never)
    } else if sources(&error).any(is_tls) {
        ("tls", Retry::Never)
    } else if error.is_connect() {
        (if error.is_timeout() { "connect_timeout" } else { "connect" }, Retry::Later)
    } else {
        ("connection", Retry::Later)
    };
    let attempt = Attempt::failed(class, chain(&error), retry);
    // Without a connection nothing was sent; TLS may also object later on.
    if error.is_builder() || error.is_connect() { attempt.nothing_done() } else { attempt }
}

/// Whether TLS itself objected, to the certificate or to what the server speaks. I/O errors wrap such errors,
/// and each other, without naming them as their source.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>() || inner.is_some_and(|inner| is_tls(inner))
}

/// The error's message and those of its causes, each once.
fn chain(error: &reqwest::Error) -> String {
    let mut message = error.to_string();
    for source in sources(error) {
        let cause = source.to_string();
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&source| source.source())
}
