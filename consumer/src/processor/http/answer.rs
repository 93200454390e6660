//! What a server's answer means for the item.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use windrow_common::envelope::completion::ItemError;

use super::super::output::{NULL, json_line, text_line};
use super::super::{Attempt, Done, Retry};
use super::client::no_answer;
use super::retry_after::retry_after;

/// A refusal's body is read and dropped up to this size and time, so that its connection can be used again.
const DRAIN_BYTES: u64 = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Reads an answer to its end. `retry_statuses` are tried again; a body over `max_bytes` fails the item.
pub(super) async fn read(response: Response, retry_statuses: &[u16], max_bytes: u64) -> Attempt {
    let status = response.status();
    if status.is_success() {
        return match body(response, max_bytes).await {
            Ok(body) => output(&body),
            Err(attempt) => attempt,
        };
    }
    let attempt = refusal(status, response.headers(), retry_statuses, SystemTime::now());
    // Whether it could be drained decides only about the connection.
    let _ = tokio::time::timeout(DRAIN_TIME, body(response, DRAIN_BYTES)).await;
    attempt
}

/// What a status other than 2xx means at `now`. The body stays out of it: it may hold personal data.
fn refusal(status: StatusCode, headers: &HeaderMap, retry_statuses: &[u16], now: SystemTime) -> Attempt {
    let mut message = format!("HTTP {}", status.as_u16());
    if let Some(reason) = status.canonical_reason() {
        message = format!("{message} {reason}");
    }
    if status.is_redirection() {
        message.push_str(": redirects are not followed; use the final address in the stage's `url`");
    }
    let error =
        ItemError { class: "http_status".to_owned(), message, status: Some(i64::from(status.as_u16())) };
    let done = done(status);
    if !retry_statuses.contains(&status.as_u16()) {
        return Attempt::Failed { error, retry: Retry::Never, done };
    }
    let after = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry_after(value, now));
    match (status, after) {
        (StatusCode::TOO_MANY_REQUESTS, _) | (StatusCode::SERVICE_UNAVAILABLE, Some(_)) => {
            Attempt::Throttled { error, after }
        }
        (_, Some(after)) => Attempt::Failed { error, retry: Retry::After(after), done },
        (_, None) => Attempt::Failed { error, retry: Retry::Later, done },
    }
}

/// Whether a server that answered so may have done what it was asked. It says that it did not with 400 to 499; but a 408
/// may be a proxy's word, who does not know. Whoever answers 500 or above has failed somewhere on the way, and a redirect
/// may be how it says that it is done.
fn done(status: StatusCode) -> Done {
    if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT {
        Done::Nothing
    } else {
        Done::Maybe
    }
}

async fn body(mut response: Response, max_bytes: u64) -> Result<Bytes, Attempt> {
    let mut whole = BytesMut::new();
    let too_large = || {
        let message = format!(
            "the response body is over {max_bytes} bytes; ask for less or raise `max_response_bytes`"
        );
        Err(Attempt::failed("response_too_large", message, Retry::Never))
    };
    if response.content_length().is_some_and(|length| length > max_bytes) {
        return too_large();
    }
    while let Some(part) = response.chunk().await.map_err(no_answer)? {
        if (whole.len() + part.len()) as u64 > max_bytes {
            return too_large();
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.freeze())
}

/// A 2xx body as an output: JSON as it is, text as a JSON string, nothing as null.
fn output(body: &Bytes) -> Attempt {
    if body.trim_ascii().is_empty() {
        return Attempt::Succeeded(NULL);
    }
    match (json_line(body), std::str::from_utf8(body)) {
        (Some(json), _) => Attempt::Succeeded(json),
        (None, Ok(text)) => Attempt::Succeeded(text_line(text)),
        (None, Err(_)) => Attempt::failed(
            "response_encoding",
            "the response body is neither JSON nor UTF-8 text",
            Retry::Never,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: [u16; 7] = [408, 425, 429, 500, 502, 503, 504];

    fn refuse(status: u16, retry_after: Option<&str>) -> Attempt {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        refusal(StatusCode::from_u16(status).unwrap(), &headers, &DEFAULT, SystemTime::now())
    }

    fn retry(attempt: &Attempt) -> Option<Retry> {
        match attempt {
            Attempt::Failed { retry, .. } => Some(*retry),
            _ => None,
        }
    }

    #[test]
    fn listed_statuses_are_tried_again_and_others_are_not() {
        for status in [408, 425, 500, 502, 503, 504] {
            assert_eq!(retry(&refuse(status, None)), Some(Retry::Later), "{status}");
        }
        for status in [301, 304, 400, 401, 404, 409, 422, 501, 599] {
            assert_eq!(retry(&refuse(status, Some("3"))), Some(Retry::Never), "{status}");
        }
        assert_eq!(retry(&refuse(500, Some("3"))), Some(Retry::After(Duration::from_secs(3))));
    }

    #[test]
    fn only_a_refusal_says_that_nothing_was_done() {
        for (statuses, expected) in [
            (&[400, 401, 404, 409, 422, 425][..], Done::Nothing),
            (&[301, 303, 408, 500, 502, 503, 504], Done::Maybe),
        ] {
            for status in statuses {
                let refused = refuse(*status, None);
                assert!(matches!(refused, Attempt::Failed { done, .. } if done == expected), "{refused:?}");
            }
        }
    }

    #[test]
    fn a_limit_of_the_server_is_a_throttle() {
        let after = |attempt| match attempt {
            Attempt::Throttled { after, .. } => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(after(refuse(429, None)), None);
        assert_eq!(after(refuse(429, Some("soon"))), None);
        assert_eq!(after(refuse(429, Some("7"))), Some(Duration::from_secs(7)));
        assert_eq!(after(refuse(503, Some("7"))), Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_job_that_lists_no_429_does_not_try_it_again() {
        let attempt = refusal(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), &[500], SystemTime::now());
        assert_eq!(retry(&attempt), Some(Retry::Never));
    }
}
