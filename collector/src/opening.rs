//! A run's opening: what its job file says of it is frozen, and its sink chosen.

use std::path::Path;

use windrow_common::envelope::completion::Opened;
use windrow_common::ids::RunId;
use windrow_common::job::Job;

use crate::engine::{Engine, Now};
use crate::ledger::{RunRecord, SinkRecord};
use crate::run::{Refusal, Run};
use crate::sink;

impl Engine {
    /// A run begins, or its producer begins again.
    pub(crate) fn open_run(&mut self, opened: Opened, now: Now) -> Result<(), Refusal> {
        if let Some(run) = self.runs.get_mut(&opened.run) {
            let known = &run.record.opened;
            let same = (&known.job, &known.hash, &known.sources, &known.fingerprint)
                == (&opened.job, &opened.hash, &opened.sources, &opened.fingerprint);
            if !same {
                return Err(Refusal(format!("the run `{}` was opened before, otherwise", opened.run)));
            }
            run.record.opened.producer = opened.producer;
            run.producer_heard_at = now.instant;
            run.mark_changed();
            return Ok(());
        }
        let key = self.next_key;
        self.next_key += 1;
        let mut run = Run::new(RunRecord::new(key, opened), now.instant);
        self.bind(&mut run);
        run.mark_changed();
        tracing::info!(run = %run.record.id(), job = %run.record.opened.job, "run opened");
        self.runs.insert(run.record.id().clone(), run);
        Ok(())
    }

    /// Gives a new run what its job file says, frozen from now on.
    fn bind(&self, run: &mut Run) {
        let opened = &run.record.opened;
        let Some(job) = self.jobs.get(&opened.job, &opened.hash) else {
            tracing::error!(
                run = %opened.run,
                job = %opened.job,
                hash = %opened.hash,
                "no job file of this name and hash is here; put it there and restart the collector: until \
                 then the run's lines stay in {}",
                self.options.data_dir.join("spool").display()
            );
            return;
        };
        run.record.bind_to(job);
        run.set_stages(job.stages.iter().map(|stage| &stage.name));
        run.record.sink = self.sink_of(job).unwrap_or_else(|reason| {
            tracing::error!(run = %run.record.id(), "the run is refused: {reason}");
            run.record.stop_reason = Some(reason);
            SinkRecord::Refused
        });
    }

    /// A run that was opened when its job file was not here, and now may be.
    pub(crate) fn bind_late(&self, run: &mut Run) {
        let opened = &run.record.opened;
        let job = self.jobs.get(&opened.job, &opened.hash);
        let (SinkRecord::Unbound, Some(job)) = (&run.record.sink, job) else { return };
        match self.sink_of(job) {
            Ok(sink) => {
                run.record.sink = sink;
                run.record.bind_to(job);
                run.mark_changed();
            }
            Err(reason) => tracing::error!(run = %opened.run, "its lines stay in the spool: {reason}"),
        }
    }

    fn sink_of(&self, job: &Job) -> Result<SinkRecord, String> {
        let base = self.options.sink_base.of(job);
        let path = job.sink_path(base).and_then(|path| std::path::absolute(path).ok());
        // Before anything is done to the file: a run that replaces it would take the other's lines.
        if let Some(path) = path
            && let Some(other) = self.writer_of(&path)
        {
            return Err(format!(
                "sink {}: run `{other}`, which has not ended, writes to it; go on with that run, or name \
                 another path",
                path.display()
            ));
        }
        sink::bind(job, base)
    }

    /// The run that writes to a file and has not ended.
    fn writer_of(&self, path: &Path) -> Option<&RunId> {
        let writes = |run: &&Run| {
            run.ended_at.is_none() && matches!(&run.record.sink, SinkRecord::File(file) if file.path == path)
        };
        self.runs.values().find(writes).map(|run| run.record.id())
    }
}
