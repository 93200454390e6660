//! The producer: source → items → chunks → work queue.
//!
//! [`plan()`] finds out what the sources are and which run this is; [`produce`] publishes it; [`preview()`]
//! only looks. Inside, a reading thread turns [`source`]s into [`pieces`] (the [`chunker`] decides where
//! to cut), and [`produce`]'s loop publishes them and moves the [`journal`] after their confirms.
//!
//! [`produce`]: produce()

mod chunker;
mod error;
mod files;
mod framed;
mod in_flight;
mod journal;
mod manifest;
mod messages;
mod news;
mod patience;
mod pieces;
mod plan;
mod preview;
mod produce;
mod reading;
mod source;
mod spool;
mod standing;
mod window;
mod wiring;

pub use error::ProducerError;
pub use journal::forget;
pub use news::follow_news;
pub use plan::{Options, Plan, Retry, plan};
pub use preview::{Preview, PreviewItem, preview};
pub use produce::{End, Produced, produce};
pub use wiring::{ProducerProgress, Wiring};
