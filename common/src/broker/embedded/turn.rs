//! One turn of the writer: look at what other processes did, write what there is to write, tell.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::{Delivery, Queue, Receipt};
use super::membership::{self, Dead, Member};
use super::posts::Post;
use super::requests::{Command, NewReader, Request, Task};
use super::subscribers::ProcessReader;
use super::transaction::{Changes, Effects, Leased, POST_RECEIPT};
use super::writer::{Writer, unix_ms};

/// How often other processes' locks are tried while somebody here reads.
const CHECK_INTERVAL: Duration = Duration::from_millis(900);

impl Writer {
    /// Looks at what others did, then writes what there is to write.
    pub(super) fn turn(&mut self) -> rusqlite::Result<()> {
        let now_ms = unix_ms();
        if !self.subscribers.is_empty() {
            self.look_outside(now_ms)?;
        }
        let dead = self.check_others(now_ms)?;
        if self.has_anything_to_write(now_ms, &dead)? {
            self.write(now_ms, dead)?;
        }
        Ok(())
    }

    /// Notices what other processes wrote since the last look.
    fn look_outside(&mut self, now_ms: i64) -> rusqlite::Result<()> {
        let version = self.store.outside_version()?;
        if version == self.seen_version {
            return Ok(());
        }
        self.subscribers.look_everywhere();
        self.next_due_ms = self.store.next_due_ms()?;
        let readers = self.subscribers.processes();
        let is_here = |id: &_| readers.iter().any(|reader| reader.id == *id);
        let (posts, last) = self.store.posts_after(self.last_post, self.member.number, now_ms, is_here)?;
        self.last_post = last;
        for post in &posts {
            self.deliver_post(post);
        }
        self.seen_version = version;
        Ok(())
    }

    /// The other processes that have ended, when it is time to look or somebody subscribes. Clears away, too.
    fn check_others(&mut self, now_ms: i64) -> rusqlite::Result<Vec<Dead>> {
        let subscribes = self.pending.iter().any(|request| matches!(request.task, Task::Subscribe { .. }));
        if !subscribes && Instant::now() < self.check_at {
            return Ok(Vec::new());
        }
        self.check_at = Instant::now() + CHECK_INTERVAL;
        if !membership::is_registered(&self.store, &self.member)? {
            self.join_again()?;
        }
        if self.store.has_old_posts(now_ms)? {
            self.store.forget_old_posts(now_ms)?;
        }
        self.store.limit_log()?;
        membership::find_dead(&self.store, Some(&self.member))
    }

    fn has_anything_to_write(&mut self, now_ms: i64, dead: &[Dead]) -> rusqlite::Result<bool> {
        if !self.pending.is_empty() || !dead.is_empty() {
            return Ok(true);
        }
        if self.subscribers.is_empty() {
            return Ok(false);
        }
        if self.next_due_ms.is_some_and(|due| due <= now_ms) {
            return Ok(true);
        }
        for want in self.subscribers.wants() {
            if self.store.has_ready(want.queue, self.member.number)? {
                return Ok(true);
            }
            self.subscribers.saw_empty(want.queue);
        }
        Ok(false)
    }

    /// Writes as much of what is pending as one transaction takes, and tells everybody.
    fn write(&mut self, now_ms: i64, dead: Vec<Dead>) -> rusqlite::Result<()> {
        let count = self.batch_size();
        let batch = &self.pending[..count];
        let only_posts = !batch.is_empty() && batch.iter().all(|request| !request.task.is_durable());
        let durable = !only_posts || !dead.is_empty();
        if durable != self.is_durable {
            self.store.set_durable(durable)?;
            self.is_durable = durable;
        }
        let transaction = self.store.begin()?;
        for each in &dead {
            let released = each.release(&self.store)?;
            tracing::warn!(
                process = each.number,
                deliveries = released,
                "a process has died; its deliveries go back"
            );
            self.subscribers.look_everywhere();
        }
        let mut changes = Changes::new(&self.store, self.member.number, now_ms, &mut self.subscribers);
        for request in batch {
            changes.apply(request)?;
        }
        // That a message was delivered must outlive a power cut, or its copy would not be known as one.
        if durable {
            changes.lease()?;
        }
        let effects = changes.finish()?;
        transaction.commit()?;
        dead.into_iter().for_each(Dead::bury);
        self.tell(count, effects);
        Ok(())
    }

    /// Answers the first `count` requests and hands out what was leased.
    fn tell(&mut self, count: usize, effects: Effects) {
        let done: Vec<Request> = self.pending.drain(..count).collect();
        for (request, answer) in done.into_iter().zip(effects.answers) {
            if let Task::Subscribe { subscription, readers, prefetch } = request.task {
                for reader in readers {
                    self.add_reader(subscription, reader, prefetch, effects.last_post);
                }
            }
            // Fails when nobody waits any more.
            let _ = request.answer.send(answer);
        }
        for post in &effects.posts {
            self.deliver_post(post);
        }
        self.deliver(effects.leased);
        self.next_due_ms = effects.next_due_ms;
    }

    fn add_reader(&mut self, subscription: u64, reader: NewReader, prefetch: u32, last_post: i64) {
        let NewReader { queue, sender } = reader;
        if let Queue::Process(id) = queue {
            if self.subscribers.processes().is_empty() {
                self.last_post = last_post;
            }
            self.subscribers.add_process(ProcessReader { subscription, id, sender });
        } else if let Some(number) = self.store.known_queue(&queue) {
            self.subscribers.add((number, queue), subscription, sender, prefetch);
        }
    }

    fn deliver(&mut self, leased: Vec<Leased>) {
        let mut unwanted = Vec::new();
        for Leased { queue, number, deliveries, message } in leased {
            let receipt =
                Receipt { generation: self.member.number.cast_unsigned(), tag: number.cast_unsigned() };
            let lost = self.lost.clone();
            let given = self.subscribers.give(queue, number, |queue| Delivery {
                message,
                queue,
                redelivered: deliveries > 0,
                delivery_count: u32::try_from(deliveries).unwrap_or(u32::MAX),
                received_at: Instant::now(),
                lost,
                receipt,
            });
            if !given {
                unwanted.push(receipt);
            }
        }
        if !unwanted.is_empty() {
            self.pending.push(Request::unanswered(Task::GiveBack(unwanted)));
        }
        for subscription in self.subscribers.take_gone() {
            self.take(Command::Stop { subscription });
        }
    }

    fn deliver_post(&self, post: &Post) {
        let meant = |reader: &&ProcessReader| post.to.as_ref().is_none_or(|id| *id == reader.id);
        for reader in self.subscribers.processes().iter().filter(meant) {
            // Fails when the subscription has ended: the message is lost, as it may be.
            let _ = reader.sender.send(Delivery {
                message: post.message.clone(),
                queue: Queue::Process(reader.id.clone()),
                redelivered: false,
                delivery_count: 0,
                received_at: Instant::now(),
                lost: self.lost.clone(),
                receipt: POST_RECEIPT,
            });
        }
    }

    /// Our lock file was removed by hand and others took us for dead: what we held is theirs now.
    fn join_again(&mut self) -> rusqlite::Result<()> {
        tracing::error!(process = self.member.number, "taken for dead by others; joining again");
        self.lost.cancel();
        self.lost = CancellationToken::new();
        self.subscribers.forget_leases();
        let member = Member::join_again(&self.store)?;
        for reader in self.subscribers.processes() {
            self.store.open_process_queue(&reader.id, member.number)?;
        }
        self.member = member;
        Ok(())
    }
}
