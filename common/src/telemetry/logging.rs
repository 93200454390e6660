//! Logs: one line an event, to standard error. `docs/logging.md` says which fields there are.

use std::env;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// Names the variable with the filter, such as `info` or `warn,windrow_consumer=debug`.
pub const FILTER_VARIABLE: &str = "WINDROW_LOG";

/// Names the variable with the format, `text` or `json`, for the command lines to read.
pub const FORMAT_VARIABLE: &str = "WINDROW_LOG_FORMAT";

/// Libraries that print what they send or receive, and the most they may say whatever the filter asks for:
/// lapin logs returned messages whole at warn, the others headers and frames at debug and below.
const CAPS: [(&str, Level); 7] = [
    ("lapin", Level::ERROR),
    ("amq_protocol", Level::ERROR),
    ("h2", Level::INFO),
    ("hyper", Level::INFO),
    ("hyper_util", Level::INFO),
    ("reqwest", Level::INFO),
    ("rustls", Level::INFO),
];

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, level, origin, what happened, `field=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LoggingError::Format),
        }
    }
}

/// Logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The format is no format.
    #[error("the log format is `text` or `json` (--log-format, {FORMAT_VARIABLE})")]
    Format,
    /// The filter is no filter.
    #[error(
        "{FILTER_VARIABLE} is not a log filter: write a level such as `debug`, or `warn,windrow_consumer=debug`"
    )]
    Filter,
    /// [`init`] was called before in this process.
    #[error("logging has begun already: {0}")]
    Again(#[from] TryInitError),
}

/// Where log lines go. It is called with one whole line, its line break included, from any thread; a
/// program with a progress bar puts the line above the bar here.
pub type LogOutput = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Lines go to standard error as they are.
pub fn standard_error() -> LogOutput {
    // There is nobody to tell that standard error is closed.
    Box::new(|line| drop(io::stderr().lock().write_all(line)))
}

/// Begins logging for the whole process: what `WINDROW_LOG` lets through or, without it, info and above
/// (warn and above when `quiet`).
pub fn init(format: LogFormat, quiet: bool, output: LogOutput) -> Result<(), LoggingError> {
    let wanted = env::var(FILTER_VARIABLE).unwrap_or_default();
    subscriber(format, filter(&wanted, quiet)?, output).try_init()?;
    Ok(())
}

fn filter(wanted: &str, quiet: bool) -> Result<EnvFilter, LoggingError> {
    let default = if quiet { LevelFilter::WARN } else { LevelFilter::INFO };
    EnvFilter::builder()
        .with_default_directive(default.into())
        .parse(wanted.trim())
        .map_err(|_| LoggingError::Filter)
}

fn subscriber(format: LogFormat, filter: EnvFilter, output: LogOutput) -> impl Subscriber + Send + Sync {
    let filter = filter.and(filter_fn(is_below_cap));
    Registry::default().with(lines(format, output).with_filter(filter))
}

fn lines<S>(format: LogFormat, output: LogOutput) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let output = Arc::new(output);
    let lines = fmt::layer().with_ansi(false).with_writer(move || Lines(Arc::clone(&output)));
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

fn is_below_cap(event: &Metadata<'_>) -> bool {
    let library = event.target().split("::").next().unwrap_or_default();
    CAPS.iter().all(|(capped, level)| library != *capped || event.level() <= level)
}

/// The subscriber writes each line with a single call.
struct Lines(Arc<LogOutput>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        (self.0)(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing::{debug, error, info, info_span, trace, warn};

    use super::*;

    /// The lines that `say` logs.
    fn logged(format: LogFormat, wanted: &str, quiet: bool, say: impl FnOnce()) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let output: LogOutput =
            Box::new(move |line| kept.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap()));
        let subscriber = subscriber(format, filter(wanted, quiet).unwrap(), output);
        tracing::subscriber::with_default(subscriber, say);
        let lines = lines.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn the_filter_decides_and_quiet_only_moves_the_default() {
        let say = || {
            warn!("w");
            info!("i");
            debug!("d");
        };
        let count = |wanted, quiet| logged(LogFormat::Text, wanted, quiet, say).len();
        assert_eq!(count("", false), 2);
        assert_eq!(count("", true), 1);
        assert_eq!(count("debug", true), 3);
        assert_eq!(count("error", false), 0);
    }

    #[test]
    fn libraries_that_print_what_they_send_stay_capped_whatever_the_filter_says() {
        let lines = logged(LogFormat::Text, "trace,lapin=trace,lapin::channel=trace", false, || {
            warn!(target: "lapin::returned_messages", "payload");
            error!(target: "lapin::channel", "closed");
            debug!(target: "h2::codec", "authorization");
            trace!(target: "hyper::proto", "body");
            info!(target: "hyper_util::client", "connected");
            debug!(target: "hyperspace", "not capped");
        });
        let said: Vec<&str> = lines.iter().map(|line| line.trim_end().rsplit(": ").next().unwrap()).collect();
        assert_eq!(said, ["closed", "connected", "not capped"]);
    }

    #[test]
    fn text_lines_begin_with_an_rfc_3339_time_and_come_whole() {
        let lines = logged(LogFormat::Text, "", false, || {
            info!(run = "r1", chunk = 3, "chunk settled");
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        assert!(rest.trim_start().starts_with("INFO windrow_common::telemetry::logging::tests: "), "{rest}");
        assert!(rest.ends_with("chunk settled run=\"r1\" chunk=3\n"), "{rest}");
    }

    #[test]
    fn json_lines_hold_the_fields_of_the_event_and_of_its_spans() {
        let lines = logged(LogFormat::Json, "", false, || {
            let span = info_span!("chunk", run = "r1", stage = "push");
            span.in_scope(|| warn!(item = 17, attempt = 2, "attempt failed"));
        });
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert!(line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "attempt failed");
        assert_eq!((&line["item"], &line["attempt"]), (&17.into(), &2.into()));
        assert_eq!(line["spans"][0]["run"], "r1");
    }

    #[test]
    fn a_wrong_filter_or_format_is_an_error_that_does_not_repeat_it() {
        let error = filter("windrow=hunter2", false).unwrap_err().to_string();
        assert!(error.contains("WINDROW_LOG") && !error.contains("hunter2"), "{error}");
        assert!("xml".parse::<LogFormat>().is_err());
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
    }
}
