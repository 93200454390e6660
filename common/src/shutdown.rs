//! Shutdown (law 13): SIGTERM and Ctrl-C begin it, a second Ctrl-C ends it at once, and each room says how
//! it went.

use std::fmt;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process ended by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// A token cancelled at the first SIGTERM or Ctrl-C. A second Ctrl-C ends the process at once with
/// [`INTERRUPTED`]: everything durable is durable already.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let asked = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        asked.cancel();
        interrupt.recv().await;
        std::process::exit(i32::from(INTERRUPTED));
    });
    Ok(token)
}

/// How a room's shutdown went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// Whether everything in hand was settled or handed over within the grace period.
    pub clean: bool,
    /// What was left, for a person, such as `3 chunks unsettled`; empty when clean.
    pub remaining: String,
}

impl Drained {
    /// Nothing was left.
    pub fn clean() -> Self {
        Self { clean: true, remaining: String::new() }
    }

    /// `remaining` was left; nothing of it is lost.
    pub fn left(remaining: impl Into<String>) -> Self {
        Self { clean: false, remaining: remaining.into() }
    }

    /// Both shutdowns as one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let parts = [self.remaining, other.remaining];
        let remaining = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
        Self { clean: self.clean && other.clean, remaining }
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.clean { f.write_str("clean") } else { write!(f, "not clean: {}", self.remaining) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_is_clean_only_when_each_room_was() {
        let left = Drained::left("3 chunks unsettled");
        assert_eq!(Drained::clean().and(Drained::clean()).to_string(), "clean");
        assert_eq!(Drained::clean().and(left.clone()).to_string(), "not clean: 3 chunks unsettled");
        let both = left.and(Drained::left("1 batch uncommitted"));
        assert_eq!(both.to_string(), "not clean: 3 chunks unsettled, 1 batch uncommitted");
    }
}
