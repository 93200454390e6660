//! `windrow prune`: forgets runs that ended long ago.

use std::time::{SystemTime, UNIX_EPOCH};

use windrow_collector::Pruner;

use crate::Failure;
use crate::args::PruneArgs;
use crate::output::{counted, print, tell};

/// Forgets them, one after another, and says which.
pub(crate) fn prune(arguments: &PruneArgs) -> Result<(), Failure> {
    let data_dir = &arguments.data.data_dir;
    let mut pruner = Pruner::open(data_dir)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = u64::try_from(now.saturating_sub(arguments.older_than).as_millis())?;
    let runs = pruner.ended_before(before)?;
    for report in &runs {
        if !arguments.dry_run {
            windrow_producer::forget(data_dir, &report.run)?;
            pruner.forget(&report.run)?;
        }
        print(format_args!("{}  {}  {}", report.run, report.job, report.state.as_str()))?;
    }
    if !arguments.dry_run && !runs.is_empty() {
        pruner.finish()?;
    }
    let would = if arguments.dry_run { "would be " } else { "" };
    tell(format_args!("{} {would}forgotten", counted(runs.len() as u64, "run")));
    Ok(())
}
