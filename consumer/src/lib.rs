//! Windrow's consumer: takes chunks from work queues, runs one piece of work per item, and reports exactly
//! one outcome for each.
//!
//! [`consumer`] starts and drains; [`intake`] takes deliveries and stops during outages; [`chunk`] is the life of one
//! delivery; [`verdict`] decides what an attempt means; [`questions`] is law 4's question and answer, and [`in_hand`]
//! what the collector is told for it; [`runs`] is what
//! the collector says of runs, and [`held`] gives back the chunks of runs that were paused; [`solitude`] is how a chunk
//! that is suspected of ending its process gets one to itself; [`processor`] is what stages do, and the seam for your own
//! Rust code.

mod chunk;
mod consumer;
mod fleet;
mod held;
mod in_hand;
mod intake;
pub mod processor;
mod questions;
mod runs;
mod slots;
mod solitude;
mod stage;
mod verdict;

pub use consumer::{Consumer, ConsumerError, DEFAULT_GRACE, Options};
pub use solitude::Solitude;
