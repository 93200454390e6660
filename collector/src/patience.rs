//! What to do while a disk is full or a database is away: hold on to the batch, say so once, and try again each second.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use windrow_common::ids::RunId;

use crate::CollectorError;
use crate::chunk_state::ChunkState;
use crate::ledger::{
    Changes, ChunkKey, Held, Ledger, LedgerError, OpenItems, OpenRuns, Recount, RunKey, RunRecord,
};
use crate::sink::order::{Piece, Position};

/// The pause between tries.
const PAUSE: Duration = Duration::from_secs(1);

/// Tries again until it works, or until the collector is told to stop.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    trouble: watch::Sender<Option<String>>,
    give_up: CancellationToken,
}

impl Patience {
    /// Patience that says what it waits for in `trouble`, and ends with `give_up`.
    pub(crate) fn new(trouble: watch::Sender<Option<String>>, give_up: CancellationToken) -> Self {
        Self { trouble, give_up }
    }

    /// Does `act` until it succeeds. `what` names the thing and where it is.
    pub(crate) async fn insist<T>(
        &self,
        what: impl Display,
        mut act: impl FnMut() -> io::Result<T>,
    ) -> Result<T, CollectorError> {
        loop {
            match act() {
                Ok(done) => {
                    self.relieved();
                    return Ok(done);
                }
                Err(error) => {
                    let trouble = format!("{what} cannot be written: {error}");
                    if !self.pause(&trouble).await {
                        return Err(CollectorError::Unwritable(trouble));
                    }
                }
            }
        }
    }

    fn relieved(&self) {
        if self.trouble.send_if_modified(|trouble| trouble.take().is_some()) {
            tracing::info!("writing goes on");
        }
    }

    /// Says what is the matter, and waits. False once the collector is told to stop.
    async fn pause(&self, trouble: &str) -> bool {
        let is_new = self.trouble.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(trouble);
            *known = Some(trouble.to_owned());
            is_new
        });
        if is_new {
            tracing::error!(
                "{trouble}; free space, or mend the disk or the database: nothing is lost, completions wait in the broker"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => true,
            () = self.give_up.cancelled() => false,
        }
    }
}

/// A ledger that is asked again until it answers, or until the collector is told to stop.
#[derive(Debug)]
pub(crate) struct PatientLedger {
    ledger: Box<dyn Ledger>,
    patience: Patience,
}

impl PatientLedger {
    /// Asks `ledger` with `patience`.
    pub(crate) fn new(ledger: Box<dyn Ledger>, patience: Patience) -> Self {
        Self { ledger, patience }
    }
}

/// Asks until the ledger can be reached.
macro_rules! insist {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        loop {
            match $self.ledger.$method($($argument),*).await {
                Ok(done) => {
                    $self.patience.relieved();
                    return Ok(done);
                }
                Err(error @ LedgerError::Unwritable(_)) if $self.patience.pause(&error.to_string()).await => {}
                Err(error) => return Err(error),
            }
        }
    };
}

#[async_trait]
impl Ledger for PatientLedger {
    async fn open_runs(&mut self) -> Result<OpenRuns, LedgerError> {
        insist!(self.open_runs())
    }

    async fn run(&mut self, run: &RunId) -> Result<Option<RunRecord>, LedgerError> {
        insist!(self.run(run))
    }

    async fn chunks(&mut self, keys: &[ChunkKey]) -> Result<Vec<Option<ChunkState>>, LedgerError> {
        insist!(self.chunks(keys))
    }

    async fn waiting(
        &mut self,
        run: RunKey,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Piece>, LedgerError> {
        insist!(self.waiting(run, from, limit))
    }

    async fn held(&mut self, run: RunKey) -> Result<Held, LedgerError> {
        insist!(self.held(run))
    }

    async fn open_items(&mut self, run: RunKey, stage: u32, source: u32) -> Result<OpenItems, LedgerError> {
        insist!(self.open_items(run, stage, source))
    }

    async fn recount(&mut self, run: RunKey, stage: u32) -> Result<Recount, LedgerError> {
        insist!(self.recount(run, stage))
    }

    async fn commit(&mut self, changes: &Changes) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
        insist!(self.commit(changes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Cannot be reached for the first calls.
    #[derive(Debug)]
    struct Away {
        for_calls: u32,
        calls: Arc<AtomicU32>,
    }

    impl Away {
        fn answer<T>(&self, answer: T) -> Result<T, LedgerError> {
            if self.calls.fetch_add(1, Ordering::Relaxed) < self.for_calls {
                return Err(LedgerError::Unwritable("away".to_owned()));
            }
            Ok(answer)
        }
    }

    #[async_trait]
    impl Ledger for Away {
        async fn open_runs(&mut self) -> Result<OpenRuns, LedgerError> {
            self.answer(OpenRuns {
                runs: Vec::new(),
                next_key: 1,
                limits: BTreeMap::new(),
                outages: BTreeMap::new(),
                claimed: Vec::new(),
                pauses: BTreeMap::new(),
                is_first: true,
            })
        }

        async fn run(&mut self, _: &RunId) -> Result<Option<RunRecord>, LedgerError> {
            self.answer(None)
        }

        async fn chunks(&mut self, _: &[ChunkKey]) -> Result<Vec<Option<ChunkState>>, LedgerError> {
            self.answer(Vec::new())
        }

        async fn waiting(&mut self, _: RunKey, _: Position, _: usize) -> Result<Vec<Piece>, LedgerError> {
            self.answer(Vec::new())
        }

        async fn held(&mut self, _: RunKey) -> Result<Held, LedgerError> {
            self.answer(Held::default())
        }

        async fn open_items(&mut self, _: RunKey, _: u32, _: u32) -> Result<OpenItems, LedgerError> {
            self.answer(OpenItems::default())
        }

        async fn recount(&mut self, _: RunKey, _: u32) -> Result<Recount, LedgerError> {
            self.answer(Recount::default())
        }

        async fn commit(&mut self, _: &Changes) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
            self.answer(BTreeMap::new())
        }
    }

    /// A ledger away for `for_calls` calls, how often it was called, and what is said of it.
    fn away(
        for_calls: u32,
    ) -> (PatientLedger, Arc<AtomicU32>, watch::Receiver<Option<String>>, CancellationToken) {
        let calls = Arc::new(AtomicU32::new(0));
        let (trouble, said) = watch::channel(None);
        let give_up = CancellationToken::new();
        let patience = Patience::new(trouble, give_up.clone());
        let ledger = Box::new(Away { for_calls, calls: Arc::clone(&calls) });
        (PatientLedger::new(ledger, patience), calls, said, give_up)
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_asked_of_a_ledger_that_is_away_is_asked_again_until_it_is_back() {
        let run: RunId = "r1".parse().unwrap();
        for asked in 0..8 {
            let (mut ledger, calls, said, _) = away(3);
            match asked {
                0 => drop(ledger.open_runs().await.unwrap()),
                1 => assert_eq!(ledger.run(&run).await.unwrap(), None),
                2 => drop(ledger.chunks(&[]).await.unwrap()),
                3 => drop(ledger.waiting(1, Position::START, 1).await.unwrap()),
                4 => drop(ledger.held(1).await.unwrap()),
                5 => drop(ledger.open_items(1, 0, 0).await.unwrap()),
                6 => assert_eq!(ledger.recount(1, 0).await.unwrap(), Recount::default()),
                _ => drop(ledger.commit(&Changes::default()).await.unwrap()),
            }
            assert_eq!((calls.load(Ordering::Relaxed), said.borrow().clone()), (4, None), "{asked}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_told_to_stop_waits_no_longer() {
        let (mut ledger, _, said, give_up) = away(u32::MAX);
        let asking = tokio::spawn(async move { ledger.held(1).await.map(drop) });
        said.clone().wait_for(Option::is_some).await.unwrap();
        give_up.cancel();
        assert!(matches!(asking.await.unwrap(), Err(LedgerError::Unwritable(_))));
    }
}
