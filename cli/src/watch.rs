//! `windrow watch`: shows how far a run is, from the ledger, until it ends.

use std::time::Duration;

use crate::Failure;
use crate::args::WatchArgs;
use crate::inspect::one;
use crate::run::progress::Display;
use crate::run::{outcome, standing};

/// How often the ledger is read.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Watches; ends with the exit code of the run.
pub(crate) fn watch(arguments: &WatchArgs) -> Result<(), Failure> {
    let reader = arguments.kept.reader()?;
    let run = reader.resolve(arguments.run.as_deref())?;
    let mut display = Display::new(false, arguments.json);
    loop {
        let report = reader.report(&run)?;
        if report.state.is_ended() {
            display.end();
            display.say("finished", &one(&report), serde_json::to_value(&report)?);
            return outcome(&report);
        }
        display.update(standing(&report));
        std::thread::sleep(LOOK_INTERVAL);
    }
}
