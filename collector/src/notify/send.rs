//! One notice on its way: to a URL, to a program, or to both, each tried until it works or is given up.

use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use windrow_common::job::{EnvText, MissingVariable, Resolved};

use super::Notice;

/// How long a server may take to answer, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a program may run.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(30);

/// What a program gets of the collector's own environment: never its secrets.
const PASSED_ON: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// Answers below 500 that may be another one the next time.
const TRY_AGAIN: [u16; 3] = [408, 425, 429];

/// Why somebody could not be told. The texts hold no part of a URL or a command line: both may be secret.
#[derive(Debug)]
enum Failure {
    /// Trying again will not help.
    Lasting(String),
    /// It may work later.
    Passing(String),
}

impl From<MissingVariable> for Failure {
    fn from(missing: MissingVariable) -> Self {
        Self::Lasting(format!("{missing}; set it and start the collector again"))
    }
}

/// One of those who are told.
#[derive(Debug, Clone, Copy)]
enum To<'a> {
    Url(&'a EnvText),
    Program(&'a [EnvText]),
}

impl To<'_> {
    fn as_str(self) -> &'static str {
        match self {
            Self::Url(_) => "url",
            Self::Program(_) => "command",
        }
    }
}

/// Tells everybody the notice names, and returns when they know or were given up.
pub(super) async fn until_told(notice: &Notice, pauses: &[Duration]) {
    let Ok(body) = serde_json::to_vec(notice) else {
        return tracing::error!(run = %notice.report.run, "a notification cannot be written");
    };
    let url = notice.spec.url.as_ref().map(To::Url);
    let program = notice.spec.command.as_deref().map(To::Program);
    join_all(url.into_iter().chain(program).map(|to| with_retries(notice, to, pauses, &body))).await;
}

async fn with_retries(notice: &Notice, to: To<'_>, pauses: &[Duration], body: &[u8]) {
    let (run, event, way) = (&notice.report.run, notice.event.as_str(), to.as_str());
    let mut pauses = pauses.iter();
    loop {
        let told = match to {
            To::Url(url) => post(url, notice, body).await,
            To::Program(argv) => start(argv, body).await,
        };
        let (reason, pause) = match told {
            Ok(()) => return tracing::info!(%run, event, way, "notification sent"),
            Err(Failure::Lasting(reason)) => (reason, None),
            Err(Failure::Passing(reason)) => (reason, pauses.next()),
        };
        let Some(pause) = pause else {
            return tracing::error!(%run, event, way, "notification given up: {reason}");
        };
        let retry_in_s = pause.as_secs();
        tracing::warn!(%run, event, way, retry_in_s, "notification not sent: {reason}");
        tokio::time::sleep(*pause).await;
    }
}

async fn post(url: &EnvText, notice: &Notice, body: &[u8]) -> Result<(), Failure> {
    let url = resolved(url)?;
    // Fails only if the process has a provider already, and then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .user_agent(concat!("windrow/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(ANSWER_TIMEOUT)
        .build()
        .map_err(|error| Failure::Passing(error.to_string()))?;
    let request = client
        .post(url.expose())
        .header("content-type", "application/json")
        .header("idempotency-key", notice.key())
        .body(body.to_vec());
    let answer = request.send().await.map_err(|error| {
        let is_wrong = error.is_builder();
        let told = causes(&error.without_url());
        if is_wrong { Failure::Lasting(told) } else { Failure::Passing(told) }
    })?;
    let status = answer.status();
    let told = format!("the server answered {}", status.as_u16());
    match status.as_u16() {
        200..=299 => Ok(()),
        again if again >= 500 || TRY_AGAIN.contains(&again) => Err(Failure::Passing(told)),
        _ => Err(Failure::Lasting(told)),
    }
}

async fn start(argv: &[EnvText], body: &[u8]) -> Result<(), Failure> {
    let argv: Vec<Resolved> = argv.iter().map(resolved).collect::<Result<_, _>>()?;
    let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
    let mut command = Command::new(program.expose());
    command
        .args(arguments.iter().map(Resolved::expose))
        .env_clear()
        .envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var(name).ok()?))))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
            Failure::Lasting(format!("the program cannot be started: {error}"))
        }
        _ => Failure::Passing(format!("the program cannot be started: {error}")),
    })?;
    let running = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A program need not read its input.
            let _ = stdin.write_all(body).await;
        }
        child.wait().await
    };
    match tokio::time::timeout(PROGRAM_TIMEOUT, running).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Failure::Passing(format!("the program ended with {status}"))),
        Ok(Err(error)) => Err(Failure::Passing(error.to_string())),
        Err(_) => Err(Failure::Passing(format!("the program took over {PROGRAM_TIMEOUT:?}"))),
    }
}

/// The error and what it came from.
fn causes(error: &reqwest::Error) -> String {
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

fn resolved(text: &EnvText) -> Result<Resolved, MissingVariable> {
    text.resolve(&|name| std::env::var(name).ok())
}
