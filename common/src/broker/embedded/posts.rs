//! Messages to processes' own queues across processes: at most once, and soon forgotten.

use super::storage::Store;
use crate::envelope::Message;
use crate::ids::ProcessId;

/// How long a message waits for its process to look.
const KEPT_MS: i64 = 10_000;

/// How many messages wait for one process; older ones make room.
const KEPT_MESSAGES: i64 = 1_000;

/// A message for one process's own queue, or for everybody's.
#[derive(Debug, Clone)]
pub(super) struct Post {
    /// None: everybody.
    pub(super) to: Option<ProcessId>,
    pub(super) message: Message,
}

impl Store {
    /// Makes the queue of a process of ours. One id belongs to one process: the newest to say so.
    pub(super) fn open_process_queue(&self, id: &ProcessId, process: i64) -> rusqlite::Result<()> {
        let sql =
            "INSERT OR REPLACE INTO process_queues (process_id, queue_group, process) VALUES (?1, ?2, ?3)";
        let group = self.group.as_str();
        self.connection.prepare_cached(sql)?.execute((id.as_str(), group, process))?;
        Ok(())
    }

    /// Deletes the queue of a process of ours.
    pub(super) fn close_process_queue(&self, id: &ProcessId, process: i64) -> rusqlite::Result<()> {
        let sql = "DELETE FROM process_queues WHERE process_id = ?1 AND process = ?2";
        self.connection.prepare_cached(sql)?.execute((id.as_str(), process))?;
        Ok(())
    }

    /// Leaves a message for other processes, if any of them is meant. Returns whether it did.
    pub(super) fn leave_post(&self, post: &Post, sender: i64, now_ms: i64) -> rusqlite::Result<bool> {
        let (group, to) = (self.group.as_str(), post.to.as_ref().map(ProcessId::as_str));
        let sql = "SELECT EXISTS (SELECT 1 FROM process_queues WHERE queue_group = ?1 AND process <> ?2
                                  AND process_id = ifnull(?3, process_id))";
        let meant: bool =
            self.connection.prepare_cached(sql)?.query_row((group, sender, to), |row| row.get(0))?;
        if meant {
            let message = self.insert_message(&post.message)?;
            let sql = "INSERT INTO posts (queue_group, process_id, sender, sent_ms, message)
                       VALUES (?1, ?2, ?3, ?4, ?5)";
            self.connection.prepare_cached(sql)?.execute((group, to, sender, now_ms, message))?;
            self.forget_posts_beyond_limit(to)?;
        }
        Ok(meant)
    }

    fn forget_posts_beyond_limit(&self, to: Option<&str>) -> rusqlite::Result<()> {
        let sql = "SELECT number FROM posts WHERE process_id IS ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2";
        let mut select = self.connection.prepare_cached(sql)?;
        let mut rows = select.query((to, KEPT_MESSAGES))?;
        if let Some(row) = rows.next()? {
            let newest: i64 = row.get(0)?;
            self.forget_posts("process_id IS ?1 AND number <= ?2", (to, newest))?;
        }
        Ok(())
    }

    /// Forgets the posts nobody fetched in time; a transaction of its own.
    pub(super) fn forget_old_posts(&self, now_ms: i64) -> rusqlite::Result<()> {
        let transaction = self.begin()?;
        self.forget_posts("sent_ms < ?1", [now_ms - KEPT_MS])?;
        transaction.commit()
    }

    /// Whether there are posts nobody fetched in time.
    pub(super) fn has_old_posts(&self, now_ms: i64) -> rusqlite::Result<bool> {
        // Posts are in the order they were sent.
        let sql = "SELECT ifnull((SELECT sent_ms < ?1 FROM posts ORDER BY number LIMIT 1), 0)";
        self.connection.prepare_cached(sql)?.query_row([now_ms - KEPT_MS], |row| row.get(0))
    }

    fn forget_posts(&self, which: &str, params: impl rusqlite::Params + Clone) -> rusqlite::Result<()> {
        let sql = format!("DELETE FROM messages WHERE number IN (SELECT message FROM posts WHERE {which})");
        self.connection.prepare_cached(&sql)?.execute(params.clone())?;
        self.connection.prepare_cached(&format!("DELETE FROM posts WHERE {which}"))?.execute(params)?;
        Ok(())
    }

    /// The number of the last post there was.
    pub(super) fn last_post(&self) -> rusqlite::Result<i64> {
        let sql = "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'posts'), 0)";
        self.connection.prepare_cached(sql)?.query_row((), |row| row.get(0))
    }

    /// The posts of others after number `after` for everybody or for who `is_here`, and the last number. They stay: who has read what is known
    /// by the reader alone, so reading writes nothing.
    pub(super) fn posts_after(
        &self,
        after: i64,
        reader: i64,
        now_ms: i64,
        is_here: impl Fn(&ProcessId) -> bool,
    ) -> rusqlite::Result<(Vec<Post>, i64)> {
        let sql = "SELECT number, process_id, message FROM posts
                   WHERE number > ?1 AND queue_group = ?2 AND sender <> ?3 AND sent_ms >= ?4 ORDER BY number";
        let mut select = self.connection.prepare_cached(sql)?;
        let group = self.group.as_str();
        let mut rows = select.query((after, group, reader, now_ms - KEPT_MS))?;
        let (mut posts, mut last) = (Vec::new(), after);
        while let Some(row) = rows.next()? {
            last = row.get(0)?;
            let to: Option<String> = row.get(1)?;
            // An id that is none names nobody here.
            let Ok(to) = to.map(ProcessId::try_from).transpose() else { continue };
            if to.as_ref().is_some_and(|id| !is_here(id)) {
                continue;
            }
            posts.push(Post { to, message: self.load_message(row.get(2)?)? });
        }
        Ok((posts, last))
    }
}
