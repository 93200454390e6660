//! Chunks that nobody could handle: what is open of them ends as failed, so that no run waits for them for ever.

use bytes::{BufMut, Bytes, BytesMut};
use windrow_common::broker::parking::Death;
use windrow_common::envelope::chunk::{ChunkHeader, KIND, id_of};
use windrow_common::envelope::completion::{ItemError, Latencies, Outcomes};
use windrow_common::envelope::{Lines, Message, decode_body};
use windrow_common::outcome::Outcome;
use windrow_common::ranges::{Ranges, Runs};

use crate::chunk_state::digest;
use crate::chunks::Chunks;
use crate::engine::Engine;
use crate::ledger::{Changes, ChunkKey};
use crate::run::{Refusal, Run};
use crate::{CollectorError, place};

/// The class of the error of these items.
const CLASS: &str = "dead_letter";

/// A chunk marked as dead.
#[derive(Debug)]
pub(crate) struct DeadChunk {
    /// Its envelope, of whatever version.
    pub(crate) header: ChunkHeader,
    /// How it died.
    pub(crate) death: Death,
    /// Its items' ids as JSON strings, in their order, where the chunk names a field for them and the body can be read.
    ids: Option<Vec<String>>,
}

impl DeadChunk {
    /// None for anything but a chunk that is marked as dead and says which items it is about.
    pub(crate) fn of(message: &Message) -> Option<Self> {
        if message.kind != KIND {
            return None;
        }
        let death = Death::of(message)?;
        let header = ChunkHeader::read(&message.headers).ok()?;
        let ids = header.id_field.as_ref().and_then(|field| {
            let ids: Vec<String> =
                Lines::new(decode_body(message).ok()?).map(|line| id_of(&line, field)).collect();
            (ids.len() as u64 == header.items.len()).then_some(ids)
        });
        Some(Self { header, death, ids })
    }

    /// The error of its items, as JSON.
    fn error(&self) -> Vec<u8> {
        let error = ItemError { class: CLASS.to_owned(), message: self.death.reason.clone(), status: None };
        // Text and a number: writing them cannot fail.
        serde_json::to_vec(&error).unwrap_or_default()
    }

    /// Says of `open`, some of its items, that they failed.
    fn outcomes(&self, open: Ranges) -> Outcomes {
        let header = &self.header;
        let chosen: Vec<usize> = (header.items.iter().enumerate())
            .filter(|(_, index)| open.contains(*index))
            .map(|(position, _)| position)
            .collect();
        let pick = |counts: &Runs<u32>| -> Runs<u32> {
            let counts: Vec<u32> = counts.iter().collect();
            chosen.iter().filter_map(|position| counts.get(*position).copied()).collect()
        };
        let error = self.error();
        let mut body = BytesMut::new();
        for position in &chosen {
            if let Some(ids) = &self.ids {
                body.put_slice(ids[*position].as_bytes());
                body.put_u8(b'\t');
            }
            body.put_slice(&error);
            body.put_u8(b'\n');
        }
        Outcomes {
            id: header.id.clone(),
            span: header.span,
            hop: header.hop,
            outcomes: Runs::repeat(Outcome::Failed, open.len()),
            attempts: pick(&header.attempts),
            throttles: pick(&header.throttles),
            holds: pick(&header.holds),
            items: open,
            handed_over: Ranges::new(),
            claimant: None,
            released: Ranges::new(),
            latencies: Latencies::default(),
            unasked: false,
            ids: self.ids.is_some(),
            body: Bytes::from(body),
        }
    }
}

impl Engine {
    /// Ends what is open of a dead chunk, and says how it is to be parked.
    pub(crate) async fn bury(
        &mut self,
        dead: DeadChunk,
        chunks: &mut Chunks,
        changes: &mut Changes,
    ) -> Result<Death, CollectorError> {
        let buried = match self.runs.get_mut(&dead.header.id.run) {
            None => Err(Refusal(format!("the ledger knows no run `{}`", dead.header.id.run))),
            Some(run) => {
                place::make_ready(&self.options.data_dir, &self.patience, run).await?;
                run.chunk_key(&dead.header.id).and_then(|key| run.bury(&dead, key, chunks, changes))
            }
        };
        Ok(match buried {
            Ok(items) => Death { failed_items: Some(items), ..dead.death },
            // Parked all the same: its own reason comes first.
            Err(Refusal(why)) => Death { reason: format!("{}; {why}", dead.death.reason), ..dead.death },
        })
    }
}

impl Run {
    /// Ends what is open of a dead chunk: items that have neither settled nor gone on with a higher hop, just those a
    /// copy of it would be told to run (law 4); those claimed by somebody end as unknown. Returns how many of its items
    /// have so ended; a copy is told the same.
    pub(crate) fn bury(
        &mut self,
        dead: &DeadChunk,
        key: ChunkKey,
        chunks: &mut Chunks,
        changes: &mut Changes,
    ) -> Result<u64, Refusal> {
        let header = &dead.header;
        let open = match chunks.get(&key) {
            Some(chunk) if chunk.span == header.span => chunk.open_to(&header.items, header.hop),
            _ => header.items.clone(),
        };
        if !open.is_empty() {
            self.outcomes(&dead.outcomes(open), key, chunks, changes)?;
        }
        let digest = digest(Outcome::Failed, &dead.error());
        let known = chunks.get(&key).filter(|chunk| chunk.span == header.span);
        Ok(known.map_or(0, |chunk| chunk.count_with(&header.items, digest)))
    }
}
