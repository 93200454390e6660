//! `windrow pause`, `resume` and `cancel`: commands to the live collector of a data folder.

use windrow_collector::control::{LimitsRequest, Request, ask, ask_limits, socket};
use windrow_collector::{ReadError, Reader, RunCommand};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::RunId;
use windrow_common::resilience::rate::check_windows;

use crate::args::{ControlArgs, Kept, LimitsArgs};
use crate::output::print;
use crate::{Failure, reading};

/// Runs named when one is not found.
const RUNS_NAMED: usize = 10;

/// Asks, and says what state the run is in now.
pub(crate) async fn control(command: RunCommand, arguments: &ControlArgs) -> Result<(), Failure> {
    let data_dir = &arguments.kept.data.data_dir;
    let (kept, name) = (arguments.kept.clone(), arguments.run.clone());
    let run = reading(move || find(&kept, &name)).await?;
    let state = ask(data_dir, &Request { command, run: run.clone() }).await?;
    print(match state {
        RunState::Paused => format!("run {run} is paused: what runs ends, nothing new is started"),
        RunState::Cancelling => {
            format!("run {run} is being cancelled: what runs ends, what is open is cancelled")
        }
        state => format!("run {run} is {}", state.as_str()),
    })
}

/// Sets the rates of a destination, and says which hold now.
pub(crate) async fn limits(arguments: &LimitsArgs) -> Result<(), Failure> {
    let LimitsArgs { destination, rates, reset, data } = arguments;
    check_windows(rates).map_err(|error| Failure::usage(format!("--rate: {error}")))?;
    let request = LimitsRequest { limits: destination.clone(), rates: (!reset).then(|| rates.clone()) };
    let rates = ask_limits(&data.data_dir, &request).await?;
    let rates: Vec<String> = rates.iter().map(ToString::to_string).collect();
    let whose = if *reset { ", as the job files say" } else { "" };
    print(format!("destination {destination} may be called {}{whose}", rates.join(" and ")))
}

/// The run of this name or of a name beginning like this; else which runs could have been meant.
fn find(kept: &Kept, name: &str) -> Result<RunId, Failure> {
    let data_dir = &kept.data.data_dir;
    let reader = if kept.ledger.is_some() {
        kept.reader()?
    } else {
        match Reader::open(data_dir) {
            // A collector whose ledger is elsewhere knows its runs by their whole names.
            Err(ReadError::NoLedger(_)) if socket(data_dir).exists() => return Ok(name.parse()?),
            reader => reader?,
        }
    };
    let found = reader.resolve(Some(name));
    if !matches!(found, Err(ReadError::NoSuchRun(_))) {
        return Ok(found?);
    }
    let reports = reader.runs()?;
    let open: Vec<&str> =
        reports.iter().filter(|report| !report.state.is_ended()).map(|report| report.run.as_str()).collect();
    let missing = format!("there is no run `{name}` in {}", data_dir.display());
    Err(Failure::from(match open.len() {
        0 => format!("{missing}, and every run there has ended"),
        more => format!(
            "{missing}; those that have not ended: {}{}",
            open[..more.min(RUNS_NAMED)].join(", "),
            if more > RUNS_NAMED { " ..." } else { "" }
        ),
    }))
}
