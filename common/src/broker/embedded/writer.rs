//! The thread all writes of a process go through.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::super::{BrokerError, Health};
use super::membership::Member;
use super::requests::{Command, Request, Task};
use super::storage::{self, Store};
use super::subscribers::Subscribers;

/// How often another process's writing is looked for while somebody here reads.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long to wait before trying again what failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// One transaction takes on at most this many requests, and about as many bytes of bodies.
const BATCH_REQUESTS: usize = 1_024;
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Now, in Unix milliseconds.
pub(super) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// All writing of a process, and what it knows of its own readers.
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) member: Member,
    inbox: Receiver<Command>,
    health: watch::Sender<Health>,
    pub(super) subscribers: Subscribers,
    /// Cancelled when our leases end.
    pub(super) lost: CancellationToken,
    /// What has been asked and is not on disk.
    pub(super) pending: Vec<Request>,
    end: End,
    /// When what failed is to be tried again.
    retry_at: Option<Instant>,
    /// When to try other processes' locks.
    pub(super) check_at: Instant,
    /// When the next delayed message is due, in Unix milliseconds.
    pub(super) next_due_ms: Option<i64>,
    /// What [`Store::outside_version`] was when we last looked at what others did.
    pub(super) seen_version: i64,
    /// The last of others' posts we have seen.
    pub(super) last_post: i64,
    /// Whether commits wait for the disk at present.
    pub(super) is_durable: bool,
}

/// Whether the writer is to go on.
enum End {
    No,
    /// Once nothing is pending.
    Soon(oneshot::Sender<()>),
    Now(Option<oneshot::Sender<()>>),
}

impl Writer {
    pub(super) fn new(
        store: Store,
        member: Member,
        inbox: Receiver<Command>,
        health: watch::Sender<Health>,
    ) -> Self {
        Self {
            store,
            member,
            inbox,
            health,
            subscribers: Subscribers::default(),
            lost: CancellationToken::new(),
            pending: Vec::new(),
            end: End::No,
            retry_at: None,
            check_at: Instant::now(),
            next_due_ms: None,
            seen_version: 0,
            last_post: 0,
            is_durable: true,
        }
    }

    /// Does what the inbox says until it says to end; then gives everything back.
    pub(super) fn run(mut self) {
        loop {
            self.receive();
            if matches!(self.end, End::Now(_)) {
                break;
            }
            if self.retry_at.is_none_or(|at| at <= Instant::now()) {
                match self.turn() {
                    Ok(()) => self.succeeded(),
                    Err(error) => self.failed(&error),
                }
            }
            if self.pending.is_empty() && matches!(self.end, End::Soon(_)) {
                break;
            }
        }
        self.leave();
    }

    /// Waits for something to do, and takes all that has been asked.
    fn receive(&mut self) {
        let first = match self.patience() {
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => self.inbox.recv_timeout(patience),
        };
        match first {
            Ok(command) => self.take(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.end = End::Now(None),
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.take(command);
        }
    }

    /// How long to wait for the inbox. None: until it has something.
    fn patience(&self) -> Option<Duration> {
        if let Some(at) = self.retry_at {
            return Some(at.saturating_duration_since(Instant::now()));
        }
        if !self.pending.is_empty() || !self.subscribers.wants().is_empty() {
            return Some(Duration::ZERO);
        }
        if self.subscribers.is_empty() {
            return None;
        }
        let until_due = self.next_due_ms.map(|due| (due - unix_ms()).max(0).unsigned_abs());
        let until_due = until_due.map_or(POLL_INTERVAL, Duration::from_millis);
        Some(until_due.min(POLL_INTERVAL))
    }

    pub(super) fn take(&mut self, command: Command) {
        match command {
            // Dropping a request's answer says that the broker is closed.
            Command::Do(request) if matches!(self.end, End::No) => self.pending.push(*request),
            Command::Do(_) => {}
            Command::Stop { subscription } => {
                let unread = self.subscribers.remove(subscription);
                if !unread.is_empty() {
                    self.pending.push(Request::unanswered(Task::StopReading(unread)));
                }
            }
            Command::Close { answer } => self.end = End::Soon(answer),
            Command::Abandon => {
                let answer = match std::mem::replace(&mut self.end, End::No) {
                    End::Soon(answer) => Some(answer),
                    End::Now(answer) => answer,
                    End::No => None,
                };
                self.end = End::Now(answer);
            }
        }
    }

    /// How many of the first requests one transaction takes on. While trouble lasts each goes alone: what
    /// can be done is done.
    pub(super) fn batch_size(&self) -> usize {
        let at_most = if self.retry_at.is_some() { 1 } else { BATCH_REQUESTS };
        let mut bytes = 0;
        let fits = |request: &&Request| {
            bytes += request.task.body_bytes();
            bytes <= BATCH_BYTES
        };
        let fitting = self.pending.iter().take(at_most).take_while(fits).count();
        fitting.max(1).min(self.pending.len())
    }

    fn succeeded(&mut self) {
        self.retry_at = None;
        if *self.health.borrow() != Health::Connected {
            tracing::info!("the queue file can be written again");
            self.health.send_replace(Health::Connected);
        }
    }

    /// Waits for what may pass, such as a full disk. Any other error is the answer to what was asked.
    fn failed(&mut self, error: &rusqlite::Error) {
        // What was seen in a transaction that is undone was not so.
        self.store.forget_queue_numbers();
        self.subscribers.look_everywhere();
        let health = if let Some(reason) = storage::passing_trouble(error, &self.store.folder) {
            // The log's space may be all that is wanted; if it can't be had, that is no new trouble.
            let _ = self.store.empty_log();
            // All of these are under way at once, so none has to be first; settling makes room.
            self.pending.sort_by_key(|request| matches!(request.task, Task::Publish(_)));
            Health::Blocked(reason)
        } else {
            let reason = self.store.explain(error).to_string();
            let count = self.batch_size();
            for request in self.pending.drain(..count) {
                let _ = request.answer.send(Err(BrokerError::Storage(reason.clone())));
            }
            Health::Disconnected(reason)
        };
        self.retry_at = Some(Instant::now() + RETRY_PAUSE);
        if *self.health.borrow() != health {
            tracing::warn!(%error, "the queue file cannot be written; trying again");
            self.health.send_replace(health);
        }
    }

    fn leave(self) {
        self.lost.cancel();
        drop(self.subscribers);
        drop(self.pending);
        if let Err(error) = self.member.leave(&self.store) {
            tracing::warn!(%error, "could not give deliveries back; the next process to look will");
        }
        // The last connection to close moves the log into the file.
        drop(self.store);
        self.health.send_replace(Health::Closed);
        if let End::Soon(answer) | End::Now(Some(answer)) = self.end {
            let _ = answer.send(());
        }
    }
}
