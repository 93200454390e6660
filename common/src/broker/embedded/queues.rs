//! Queues: their names, who reads them, and where each message waits.

use rusqlite::OptionalExtension;

use super::super::parking::{self, Death};
use super::super::{BrokerError, Depth, Queue};
use super::storage::Store;
use crate::ids::StageKey;

/// A message delivered this often without being settled is dead: what it does to consumers, it would do again.
const DELIVERY_LIMIT: i64 = 50;

/// How many messages become due in one transaction.
const DUE_BATCH: u32 = 1_000;

/// A message just leased to this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) message: i64,
    pub(super) deliveries: i64,
}

impl Store {
    fn queue_name(&self, queue: &Queue) -> String {
        let group = &self.group;
        match queue {
            Queue::Work(key) => format!("{group}/work/{key}"),
            Queue::Due(key) => format!("{group}/due/{key}"),
            Queue::Held(key) => format!("{group}/held/{key}"),
            Queue::Alone(key) => format!("{group}/alone/{key}"),
            Queue::Completion => format!("{group}/completion"),
            Queue::Parking => format!("{group}/parking"),
            Queue::Process(id) => format!("{group}/process/{id}"),
        }
    }

    /// The number of a queue, if it is there.
    pub(super) fn find_queue(&self, queue: &Queue) -> rusqlite::Result<Option<i64>> {
        if let Some(number) = self.known_queue(queue) {
            return Ok(Some(number));
        }
        let mut select = self.connection.prepare_cached("SELECT number FROM queues WHERE name = ?1")?;
        let found = select.query_row([self.queue_name(queue)], |row| row.get(0)).optional()?;
        if let Some(number) = found {
            self.queue_numbers.borrow_mut().insert(queue.clone(), number);
        }
        Ok(found)
    }

    /// The number of a queue this process has met.
    pub(super) fn known_queue(&self, queue: &Queue) -> Option<i64> {
        self.queue_numbers.borrow().get(queue).copied()
    }

    /// The queue of this group with this name, if it is one of those messages wait in.
    fn queue_named(&self, name: &str) -> Option<Queue> {
        let name = name.strip_prefix(self.group.as_str())?.strip_prefix('/')?;
        if name == "completion" {
            return Some(Queue::Completion);
        }
        let names: Vec<&str> = name.split('/').collect();
        let [kind, job, stage] = names.as_slice() else { return None };
        let key = StageKey { job: job.parse().ok()?, stage: stage.parse().ok()? };
        match *kind {
            "work" => Some(Queue::Work(key)),
            "due" => Some(Queue::Due(key)),
            "held" => Some(Queue::Held(key)),
            "alone" => Some(Queue::Alone(key)),
            _ => None,
        }
    }

    /// The number of a queue, made if it is not there, as are the completion and the parking queue: what is dead goes
    /// by them.
    pub(super) fn ensure_queue(&self, queue: &Queue) -> rusqlite::Result<i64> {
        if let Some(number) = self.find_queue(queue)? {
            return Ok(number);
        }
        let parking = match queue {
            Queue::Parking => None,
            Queue::Completion => Some(self.ensure_queue(&Queue::Parking)?),
            _ => Some(self.ensure_queue(&Queue::Completion)?),
        };
        let parking = parking.filter(|_| matches!(queue, Queue::Work(_) | Queue::Due(_) | Queue::Alone(_)));
        let mut insert =
            self.connection.prepare_cached("INSERT INTO queues (name, parking) VALUES (?1, ?2)")?;
        let number = insert.insert((self.queue_name(queue), parking))?;
        self.queue_numbers.borrow_mut().insert(queue.clone(), number);
        Ok(number)
    }

    /// Forgets the queues made in a transaction that was rolled back.
    pub(super) fn forget_queue_numbers(&self) {
        self.queue_numbers.borrow_mut().clear();
    }

    /// Puts a message at the end of a queue.
    pub(super) fn enqueue(&self, queue: i64, message: i64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO ready (queue, message, deliveries) VALUES (?1, ?2, 0)";
        self.connection.prepare_cached(sql)?.execute((queue, message))?;
        Ok(())
    }

    /// Puts a message aside until `due_ms`, Unix milliseconds.
    pub(super) fn delay(&self, queue: i64, message: i64, due_ms: i64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO delayed (due_ms, message, queue) VALUES (?1, ?2, ?3)";
        self.connection.prepare_cached(sql)?.execute((due_ms, message, queue))?;
        Ok(())
    }

    /// When the next delayed message is due, in Unix milliseconds.
    pub(super) fn next_due_ms(&self) -> rusqlite::Result<Option<i64>> {
        self.connection.prepare_cached("SELECT min(due_ms) FROM delayed")?.query_row((), |row| row.get(0))
    }

    /// Moves messages that are due to their queues, and returns those queues.
    pub(super) fn move_due(&self, now_ms: i64) -> rusqlite::Result<Vec<i64>> {
        let sql =
            "SELECT due_ms, message, queue FROM delayed WHERE due_ms <= ?1 ORDER BY due_ms, message LIMIT ?2";
        let mut select = self.connection.prepare_cached(sql)?;
        let due: Vec<(i64, i64, i64)> = select
            .query_map((now_ms, DUE_BATCH), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let sql = "DELETE FROM delayed WHERE due_ms = ?1 AND message = ?2";
        let mut delete = self.connection.prepare_cached(sql)?;
        for (due_ms, message, queue) in &due {
            delete.execute((due_ms, message))?;
            self.enqueue(*queue, *message)?;
        }
        Ok(due.into_iter().map(|(_, _, queue)| queue).collect())
    }

    /// Whether `process` would be given something from a queue now.
    pub(super) fn has_ready(&self, queue: i64, process: i64) -> rusqlite::Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM ready WHERE queue = ?1)
                   AND EXISTS (SELECT 1 FROM queues WHERE number = ?1 AND ifnull(reader, ?2) = ?2)";
        self.connection.prepare_cached(sql)?.query_row((queue, process), |row| row.get(0))
    }

    /// Makes `process` the one reader of a queue, unless another is.
    pub(super) fn claim_reading(&self, queue: i64, process: i64) -> rusqlite::Result<bool> {
        let sql = "SELECT reader FROM queues WHERE number = ?1";
        let reader: Option<i64> =
            self.connection.prepare_cached(sql)?.query_row([queue], |row| row.get(0))?;
        if reader.is_none() {
            let sql = "UPDATE queues SET reader = ?2 WHERE number = ?1";
            self.connection.prepare_cached(sql)?.execute((queue, process))?;
        }
        Ok(reader.is_none_or(|reader| reader == process))
    }

    /// Lets another process read a queue that `process` was the one reader of.
    pub(super) fn leave_reading(&self, queue: i64, process: i64) -> rusqlite::Result<()> {
        let sql = "UPDATE queues SET reader = NULL WHERE number = ?1 AND reader = ?2";
        self.connection.prepare_cached(sql)?.execute((queue, process))?;
        Ok(())
    }

    /// Leases the first `at_most` messages of a queue to `process`.
    pub(super) fn lease(&self, queue: i64, process: i64, at_most: u32) -> rusqlite::Result<Vec<Lease>> {
        let sql = "SELECT message, deliveries FROM ready WHERE queue = ?1 ORDER BY message LIMIT ?2";
        let mut select = self.connection.prepare_cached(sql)?;
        let leases: Vec<Lease> = select
            .query_map((queue, at_most), |row| Ok(Lease { message: row.get(0)?, deliveries: row.get(1)? }))?
            .collect::<Result<_, _>>()?;
        // What was taken is all there is up to the last of it.
        if let Some(last) = leases.last() {
            let sql = "INSERT INTO leased (message, queue, process, deliveries)
                       SELECT message, queue, ?3, deliveries FROM ready WHERE queue = ?1 AND message <= ?2";
            self.connection.prepare_cached(sql)?.execute((queue, last.message, process))?;
            let sql = "DELETE FROM ready WHERE queue = ?1 AND message <= ?2";
            self.connection.prepare_cached(sql)?.execute((queue, last.message))?;
        }
        Ok(leases)
    }

    /// Ends a lease and deletes its message. False when `process` does not hold it.
    pub(super) fn settle(&self, message: i64, process: i64) -> rusqlite::Result<bool> {
        let sql = "DELETE FROM leased WHERE message = ?1 AND process = ?2";
        let held = self.connection.prepare_cached(sql)?.execute((message, process))? == 1;
        if held {
            self.delete_message(message)?;
        }
        Ok(held)
    }

    /// Puts a leased message nobody has seen back where it was, and says which queue that is.
    pub(super) fn give_back(&self, message: i64, process: i64) -> rusqlite::Result<Option<i64>> {
        let sql = "DELETE FROM leased WHERE message = ?1 AND process = ?2 RETURNING queue, deliveries";
        let mut delete = self.connection.prepare_cached(sql)?;
        let lease: Option<(i64, i64)> =
            delete.query_row((message, process), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((queue, deliveries)) = lease else { return Ok(None) };
        let sql = "INSERT INTO ready (queue, message, deliveries) VALUES (?1, ?2, ?3)";
        self.connection.prepare_cached(sql)?.execute((queue, message, deliveries))?;
        Ok(Some(queue))
    }

    /// Puts everything a process held back where it was, counted as delivered once more, and ends its
    /// reading; what was delivered too often is given up. Returns how many messages that were.
    pub(super) fn release(&self, process: i64) -> rusqlite::Result<usize> {
        let given_up = self.give_up(process)?;
        let sql = "INSERT INTO ready (queue, message, deliveries)
                   SELECT queue, message, deliveries + 1 FROM leased WHERE process = ?1";
        let released = given_up + self.connection.prepare_cached(sql)?.execute([process])?;
        for sql in [
            "DELETE FROM leased WHERE process = ?1",
            "UPDATE queues SET reader = NULL WHERE reader = ?1",
            "DELETE FROM process_queues WHERE process = ?1",
            "DELETE FROM processes WHERE number = ?1",
        ] {
            self.connection.prepare_cached(sql)?.execute([process])?;
        }
        Ok(released)
    }

    /// Sends on what a process held and was delivered too often, marked with the reason, as a new message: whatever
    /// that process sent before is ahead of it.
    fn give_up(&self, process: i64) -> rusqlite::Result<usize> {
        let sql = "SELECT message, name, parking FROM leased JOIN queues ON queues.number = leased.queue
                   WHERE process = ?1 AND deliveries >= ?2 AND parking IS NOT NULL ORDER BY message";
        let mut select = self.connection.prepare_cached(sql)?;
        let too_often: Vec<(i64, String, i64)> = select
            .query_map((process, DELIVERY_LIMIT), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        for (message, name, target) in &too_often {
            let death = Death {
                reason: parking::DELIVERED_TOO_OFTEN.to_owned(),
                from: self.queue_named(name),
                at_ms: u64::try_from(super::writer::unix_ms()).ok(),
                ..Death::default()
            };
            let number = self.insert_message(&death.mark(&self.load_message(*message)?))?;
            self.enqueue(*target, number)?;
            self.settle(*message, process)?;
        }
        Ok(too_often.len())
    }

    /// How many messages a queue holds; those that are due count though nobody has moved them.
    pub(super) fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        let count = || {
            let Some(number) = self.find_queue(queue)? else { return Ok(Depth::default()) };
            let sql = "SELECT (SELECT count(*) FROM ready WHERE queue = ?1)
                            + (SELECT count(*) FROM delayed WHERE queue = ?1 AND due_ms <= ?2),
                              (SELECT count(*) FROM leased WHERE queue = ?1)";
            self.connection.prepare_cached(sql)?.query_row((number, super::writer::unix_ms()), |row| {
                let (ready, unsettled) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?);
                Ok(Depth { ready: ready.unsigned_abs(), unsettled: unsettled.unsigned_abs() })
            })
        };
        count().map_err(|error: rusqlite::Error| self.explain(&error))
    }
}
