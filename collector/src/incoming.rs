//! What comes by the completion queue: completions, and chunks that nobody could handle.

use windrow_common::broker::Queue;
use windrow_common::broker::parking::Death;
use windrow_common::envelope::Message;
use windrow_common::envelope::completion::Completion;
use windrow_common::ids::{ChunkId, RunId};

use crate::dead::DeadChunk;

/// A group of messages is settled once this much of their bodies is in memory.
const GROUP_BYTES: usize = 64 * 1024 * 1024;

/// A message of the completion queue, read.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are completions")]
pub(crate) enum Incoming {
    /// A completion.
    Completion(Completion),
    /// A chunk that nobody could handle, of a run that is not to wait for it.
    Dead(Box<DeadChunk>),
}

/// A group of messages: each read, or how it died.
pub(crate) type Group = Vec<Result<Incoming, Death>>;

impl Incoming {
    /// Reads a message. What cannot be read is to be parked; what was dead before keeps its first reason.
    fn read(message: &Message, unix_ms: u64) -> Result<Self, Death> {
        if let Some(dead) = DeadChunk::of(message) {
            return Ok(Self::Dead(Box::new(dead)));
        }
        Completion::from_message(message).map(Self::Completion).map_err(|error| {
            Death::of(message).unwrap_or_else(|| Death::new(error.to_string(), &Queue::Completion, unix_ms))
        })
    }

    /// The run it speaks of, if it does of one.
    pub(crate) fn run(&self) -> Option<&RunId> {
        match self {
            Self::Completion(completion) => run_of(completion),
            Self::Dead(dead) => Some(&dead.header.id.run),
        }
    }

    /// The chunk it speaks of, if it does of one.
    pub(crate) fn chunk(&self) -> Option<&ChunkId> {
        match self {
            Self::Completion(Completion::Outcomes(outcomes)) => Some(&outcomes.id),
            Self::Completion(Completion::Question(question)) => Some(&question.id),
            Self::Completion(_) => None,
            Self::Dead(dead) => Some(&dead.header.id),
        }
    }

    /// When the claims it speaks of were overdue, in Unix milliseconds, if it speaks of that.
    pub(crate) fn overdue_at(&self) -> Option<u64> {
        match self {
            Self::Completion(Completion::Overdue(overdue)) => Some(overdue.at),
            _ => None,
        }
    }
}

/// Reads messages from the front until enough is in memory. Returns how many that were.
pub(crate) fn read_group(messages: &[Message], unix_ms: u64) -> (Group, usize) {
    let mut group = Vec::with_capacity(messages.len());
    let mut bytes = 0;
    for message in messages {
        if bytes > GROUP_BYTES {
            break;
        }
        let incoming = Incoming::read(message, unix_ms);
        bytes += match &incoming {
            Ok(Incoming::Completion(Completion::Outcomes(outcomes))) => outcomes.body.len(),
            Ok(Incoming::Dead(_)) => message.body.len(),
            _ => 0,
        };
        group.push(incoming);
    }
    let taken = group.len();
    (group, taken)
}

/// The run a completion speaks of, if it does of one.
pub(crate) fn run_of(completion: &Completion) -> Option<&RunId> {
    Some(match completion {
        Completion::Opened(opened) => &opened.run,
        Completion::Progress(progress) => &progress.run,
        Completion::Sealed(sealed) => &sealed.run,
        Completion::Rejects(rejects) => &rejects.run,
        Completion::Outcomes(outcomes) => &outcomes.id.run,
        Completion::Question(question) => &question.id.run,
        Completion::StandsBy(_) | Completion::Overdue(_) => return None,
    })
}
