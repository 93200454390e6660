//! http stages against a real server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windrow_common::job::{EnvText, HttpSpec, ProcessorSpec};

use super::super::tests::{build, env, failure, item, output, stage_spec};
use super::super::{Attempt, Destinations, Item, Retry, Stage};
use super::server::{Received, Reply, Server, reply};

const DEFAULT_RETRY_STATUSES: [u16; 7] = [408, 425, 429, 500, 502, 503, 504];

fn post(url: impl Into<String>) -> HttpSpec {
    HttpSpec {
        method: "POST".to_owned(),
        url: EnvText::new(url),
        headers: BTreeMap::new(),
        body: Some(EnvText::new("{{ item | tojson }}")),
        retry_statuses: DEFAULT_RETRY_STATUSES.to_vec(),
        max_response_bytes: 1024,
    }
}

fn stage(spec: HttpSpec) -> Stage {
    build(&stage_spec(ProcessorSpec::Http(Box::new(spec))))
}

fn url(server: &Server) -> String {
    format!("http://127.0.0.1:{}/", server.port)
}

fn headers(pairs: &[(&str, &str)]) -> BTreeMap<String, EnvText> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), EnvText::new(value))).collect()
}

/// One call of a server that always answers so.
async fn answered(answer: impl Fn() -> Reply + Send + Sync + 'static) -> (Attempt, Server) {
    let server = Server::start(move |_: &Received| answer()).await;
    let attempt = stage(post(url(&server))).processor().process(&item("{}")).await;
    (attempt, server)
}

#[tokio::test]
async fn a_request_is_what_the_job_says() {
    let server = Server::start(|_: &Received| reply("200 OK", "", "")).await;
    let spec = HttpSpec {
        method: "PUT".to_owned(),
        headers: headers(&[("authorization", "Bearer ${TOKEN}"), ("x-name", "{{ item.name }}")]),
        ..post(url(&server) + "contacts/{{ item.id | urlencode }}?run={{ run }}")
    };
    let attempt = stage(spec).processor().process(&item(r#"{"id":"a b?","name":"Zoë"}"#)).await;
    assert_eq!(output(attempt), "null");
    let request = server.requests().pop().unwrap();
    assert_eq!(request.line, "PUT /contacts/a%20b%3F?run=r1 HTTP/1.1");
    let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(body, serde_json::json!({"id": "a b?", "name": "Zoë"}));
    let expected = [
        ("authorization", "Bearer s3cret-t0ken"),
        ("content-type", "application/json"),
        ("idempotency-key", "r0/push/main/17"),
        ("x-name", "Zoë"),
    ];
    for (name, value) in expected {
        assert_eq!(request.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(request.headers["user-agent"].starts_with("windrow/"));
}

#[tokio::test]
async fn the_idempotency_key_is_the_same_for_each_attempt_unless_the_job_sets_its_own() {
    let server = Server::start(|_: &Received| reply("200 OK", "", "")).await;
    let plain = stage(post(url(&server)));
    let own = HttpSpec { headers: headers(&[("idempotency-key", "{{ item.id }}")]), ..post(url(&server)) };
    for attempt in [1, 2, 9] {
        plain.processor().process(&Item { attempt, ..item("{}") }).await;
    }
    stage(own).processor().process(&item(r#"{"id":"mine"}"#)).await;
    let keys: Vec<_> = server
        .requests()
        .into_iter()
        .map(|mut request| request.headers.remove("idempotency-key").unwrap())
        .collect();
    assert_eq!(keys, ["r0/push/main/17", "r0/push/main/17", "r0/push/main/17", "mine"]);
}

#[tokio::test]
async fn a_request_without_body_has_no_content_type() {
    let server = Server::start(|_: &Received| reply("200 OK", "", "1")).await;
    let spec = HttpSpec { method: "GET".to_owned(), body: None, ..post(url(&server)) };
    assert_eq!(output(stage(spec).processor().process(&item("{}")).await), "1");
    let request = server.requests().pop().unwrap();
    assert!(request.line.starts_with("GET ") && !request.headers.contains_key("content-type"), "{request:?}");
}

#[tokio::test]
async fn a_body_becomes_one_line_of_json() {
    let bodies =
        [("{\n\"a\":\n1.0}\n", r#"{ "a": 1.0}"#), ("done\n", r#""done\n""#), ("", "null"), (" \n", "null")];
    for (body, expected) in bodies {
        let (attempt, _) = answered(move || reply("201 Created", "", body)).await;
        assert_eq!(output(attempt), expected);
    }
    let (attempt, _) = answered(|| reply("200 OK", "", b"\xff\xfe")).await;
    assert_eq!(failure(attempt).0.class, "response_encoding");
}

#[tokio::test]
async fn statuses_decide_whether_there_is_another_attempt() {
    for (status, expected) in [("500 X", Retry::Later), ("404 X", Retry::Never), ("401 X", Retry::Never)] {
        let (attempt, _) = answered(move || reply(status, "", "personal data")).await;
        let (error, retry) = failure(attempt);
        assert_eq!((error.class.as_str(), retry), ("http_status", expected));
        assert_eq!(error.status.map(|status| status.to_string()).as_deref(), status.get(..3));
        assert!(!error.message.contains("personal"), "{}", error.message);
    }
}

#[tokio::test]
async fn a_refusal_by_a_limit_says_when_to_come_back() {
    let (attempt, _) = answered(|| reply("429 X", "retry-after: 7\r\n", "")).await;
    let Attempt::Throttled { error, after } = attempt else { panic!("{attempt:?}") };
    assert_eq!((error.message.as_str(), error.status), ("HTTP 429 Too Many Requests", Some(429)));
    assert_eq!(after, Some(Duration::from_secs(7)));

    let date = jiff::Timestamp::try_from(SystemTime::now() + Duration::from_secs(90)).unwrap();
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date).unwrap();
    let (attempt, _) = answered(move || reply("503 X", &format!("retry-after: {date}\r\n"), "")).await;
    let Attempt::Throttled { after: Some(after), .. } = attempt else { panic!("{attempt:?}") };
    assert!((60..=90).contains(&after.as_secs()), "{after:?}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (attempt, server) = answered(|| reply("302 Found", "location: /s3cret\r\n", "")).await;
    let (error, retry) = failure(attempt);
    assert_eq!(retry, Retry::Never);
    assert!(error.message.contains("redirects are not followed") && !error.message.contains("s3cret"));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_dropped_call_is_taken_back() {
    let server = Server::start(|_: &Received| Reply::Silence).await;
    let (stage, item) = (stage(post(url(&server))), item("{}"));
    tokio::select! {
        attempt = stage.processor().process(&item) => panic!("{attempt:?}"),
        () = server.log.received.notified() => {}
    }
    tokio::time::timeout(Duration::from_secs(10), server.log.closed.notified()).await.unwrap();
}

#[tokio::test]
async fn a_body_over_the_limit_fails_the_item_without_being_read_to_its_end() {
    let (attempt, _) = answered(|| reply("200 OK", "", [b'1'; 1025])).await;
    let (error, retry) = failure(attempt);
    assert_eq!((error.class.as_str(), retry), ("response_too_large", Retry::Never));
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = "400\r\n".to_owned() + &"x".repeat(1024) + "\r\n";
    let first = std::sync::Once::new();
    let (attempt, server) = answered(move || {
        let mut bytes = Vec::new();
        first.call_once(|| bytes.extend_from_slice(head.as_bytes()));
        bytes.extend_from_slice(chunks.as_bytes());
        bytes.extend_from_slice(chunks.as_bytes());
        Reply::Bytes(bytes)
    })
    .await;
    assert_eq!(failure(attempt).0.class, "response_too_large");
    tokio::time::timeout(Duration::from_secs(10), server.log.closed.notified()).await.unwrap();
}

#[tokio::test]
async fn an_endless_head_or_refusal_ends_by_itself() {
    let (attempt, _) = answered(|| Reply::Endless(b"HTTP/1.1 200 OK\r\nx: y\r\n".to_vec())).await;
    assert_eq!(failure(attempt).0.class, "connection");
    let (attempt, _) = answered(|| {
        let head = "HTTP/1.1 500 X\r\ncontent-length: 1000000000\r\n\r\n".to_owned();
        Reply::Bytes((head + &"x".repeat(1_000_000)).into_bytes())
    })
    .await;
    assert_eq!(failure(attempt).0.status, Some(500));
}

#[tokio::test]
async fn what_an_item_brings_cannot_become_a_header_of_its_own() {
    let server = Server::start(|_: &Received| reply("200 OK", "", "")).await;
    let spec = HttpSpec { headers: headers(&[("x-name", "{{ item.name }}")]), ..post(url(&server)) };
    let stage = stage(spec);
    for name in ["a\r\nx-admin: 1", "a\nb", "a\u{0}b"] {
        let raw = serde_json::json!({ "name": name }).to_string();
        let (error, retry) = failure(stage.processor().process(&item(&raw)).await);
        assert_eq!((error.class.as_str(), retry), ("request", Retry::Never));
        assert!(error.message.contains("`x-name`") && !error.message.contains("admin"), "{}", error.message);
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn connections_are_used_again_even_after_refusals() {
    let server = Server::start(|request: &Received| {
        if request.body.contains('5') {
            reply("500 X", "", "no ".repeat(20_000))
        } else {
            reply("200 OK", "", "1")
        }
    })
    .await;
    let stage = stage(post(url(&server)));
    for n in 0..20 {
        stage.processor().process(&item(&n.to_string())).await;
    }
    assert_eq!(server.requests().len(), 20);
    assert_eq!(server.log.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn all_http_stages_of_a_process_share_their_connections() {
    let server = Server::start(|_: &Received| reply("200 OK", "", "1")).await;
    let destinations = Destinations::default();
    let spec = stage_spec(ProcessorSpec::Http(Box::new(post(url(&server)))));
    for _ in 0..2 {
        Stage::build(&spec, &destinations, &env).unwrap().processor().process(&item("{}")).await;
    }
    assert_eq!(server.log.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_call_without_an_answer_is_tried_again() {
    let closed = Server::start(|_: &Received| Reply::Silence).await.port;
    let (error, retry) =
        failure(stage(post(format!("http://127.0.0.1:{closed}/"))).processor().process(&item("{}")).await);
    assert_eq!((error.class.as_str(), retry), ("connect", Retry::Later), "{}", error.message);
    for part in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let (attempt, _) = answered(move || Reply::Close(part.as_bytes().to_vec())).await;
        let (error, retry) = failure(attempt);
        assert_eq!((error.class.as_str(), retry), ("connection", Retry::Later), "{}", error.message);
    }
}

#[tokio::test]
async fn what_can_only_fail_again_is_not_tried_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let no_tls = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let urls = [
        ("{{ item.nothing }}", "template"),
        ("nowhere", "request"),
        ("ftp://a/", "request"),
        (&no_tls, "tls"),
    ];
    for (url, class) in urls {
        let (error, retry) = failure(stage(post(url)).processor().process(&item("{}")).await);
        assert_eq!((error.class.as_str(), retry), (class, Retry::Never), "{}", error.message);
    }
}

#[tokio::test]
async fn errors_hold_no_secret_and_no_part_of_a_url() {
    let closed = Server::start(|_: &Received| Reply::Silence).await.port;
    let urls = [
        format!("http://user:${{TOKEN}}@127.0.0.1:{closed}/${{TOKEN}}?key=${{TOKEN}}&who={{{{ item }}}}"),
        "http://${TOKEN}:99999/".to_owned(),
        "${TOKEN}://a/".to_owned(),
        format!("https://${{TOKEN}}.invalid:{closed}/"),
    ];
    for url in urls {
        let spec = HttpSpec { headers: headers(&[("authorization", "${TOKEN}\n")]), ..post(url.clone()) };
        let with_header = failure(stage(spec).processor().process(&item(r#""personal""#)).await).0;
        let without = failure(stage(post(url)).processor().process(&item(r#""personal""#)).await).0;
        for error in [with_header, without] {
            let shown = ["s3cret", "personal"].into_iter().find(|text| error.message.contains(text));
            assert_eq!(shown, None, "{}", error.message);
        }
    }
    let spec = HttpSpec { headers: headers(&[("authorization", "${TOKEN}")]), ..post("http://a/${TOKEN}") };
    assert!(!format!("{:?}", stage(spec)).contains("s3cret"));
}

#[tokio::test]
async fn a_thousand_calls_at_once_see_nothing_of_each_other() {
    let server = Server::start(|request: &Received| {
        let path = request.line.split(' ').nth(1).unwrap();
        let seen = format!("[{},{},\"{}\"]", request.body, &path[1..], request.headers["x-n"]);
        reply("200 OK", "", seen)
    })
    .await;
    let spec = HttpSpec {
        headers: headers(&[("x-n", "{{ item }}")]),
        body: Some(EnvText::new("{{ item }}")),
        ..post(url(&server) + "{{ item }}")
    };
    let stage = Arc::new(stage(spec));
    let gate = Arc::new(tokio::sync::Semaphore::new(100));
    let check = |n: u64| {
        let (stage, gate) = (stage.clone(), gate.clone());
        tokio::spawn(async move {
            let _permit = gate.acquire().await.unwrap();
            let attempt = stage.processor().process(&item(&n.to_string())).await;
            assert_eq!(output(attempt), format!("[{n},{n},\"{n}\"]"));
        })
    };
    for checked in join_all((0..1_000).map(check)).await {
        checked.unwrap();
    }
}

#[test]
fn headers_that_follow_from_the_request_cannot_be_set() {
    for name in ["content-length", "Transfer-Encoding", "connection", "no name"] {
        let spec = HttpSpec { headers: headers(&[(name, "1")]), ..post("http://a/") };
        let spec = stage_spec(ProcessorSpec::Http(Box::new(spec)));
        let error = Stage::build(&spec, &Destinations::default(), &env).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
