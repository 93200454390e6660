//! A process of ours and its supervisor: whatever ends is started again, as a service manager would.

use std::time::{Duration, Instant};

use windrow_tests::process::Process;

/// Starts it, to die at this crash point, if one is given.
type Start = Box<dyn Fn(Option<&str>) -> Process>;

/// One process, whichever of its lives it is in.
pub(crate) struct Slot {
    pub(crate) name: String,
    start: Start,
    process: Option<Process>,
    /// When it starts again, and the crash point it is to die at then.
    back_at: (Instant, Option<&'static str>),
    frozen_since: Option<Instant>,
    thaws_at: Instant,
    /// When it was frozen, from and to.
    pub(crate) frozen: Vec<(Instant, Instant)>,
    /// How it ended by itself, each time.
    pub(crate) ends: Vec<String>,
    /// Whether it may end well, for good.
    is_finite: bool,
    /// Whether it did.
    pub(crate) is_done: bool,
}

impl Slot {
    /// A process that is to be there for ever, or, a finite one, until it ends well.
    pub(crate) fn new(
        name: &str,
        is_finite: bool,
        start: impl Fn(Option<&str>) -> Process + 'static,
    ) -> Self {
        let now = Instant::now();
        Self {
            name: name.to_owned(),
            process: Some(start(None)),
            start: Box::new(start),
            back_at: (now, None),
            frozen_since: None,
            thaws_at: now,
            frozen: Vec::new(),
            ends: Vec::new(),
            is_finite,
            is_done: false,
        }
    }

    /// Kills it; it starts again after `away`.
    pub(crate) fn kill(&mut self, away: Duration, then_at: Option<&'static str>) {
        self.note_thaw();
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
        self.back_at = (Instant::now() + away, then_at);
    }

    /// Freezes it for a while.
    pub(crate) fn freeze(&mut self, lasts: Duration) {
        if let Some(process) = &self.process {
            process.stop();
            let now = Instant::now();
            self.frozen_since.get_or_insert(now);
            self.thaws_at = now + lasts;
        }
    }

    /// Asks it to end. False when it is not there.
    pub(crate) fn terminate(&self) -> bool {
        self.process.as_ref().inspect(|process| process.terminate()).is_some()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen_since.is_some()
    }

    pub(crate) fn is_there(&self) -> bool {
        self.process.is_some()
    }

    /// What it has printed, in all of its lives.
    pub(crate) fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self) {
        let now = Instant::now();
        if self.is_done {
            return;
        }
        let Some(process) = &mut self.process else {
            if now >= self.back_at.0 {
                self.process = Some((self.start)(self.back_at.1));
            }
            return;
        };
        if let Some(status) = process.ended() {
            self.ends.push(status.to_string());
            self.is_done = self.is_finite && status.success();
            self.process = None;
            self.back_at = (now, None);
            self.note_thaw();
        } else if self.frozen_since.is_some() && now >= self.thaws_at {
            process.go_on();
            self.note_thaw();
        }
    }

    fn note_thaw(&mut self) {
        if let Some(since) = self.frozen_since.take() {
            self.frozen.push((since, Instant::now()));
        }
    }
}
