//! What two or more of Windrow's rooms must agree on, and nothing else.
//!
//! Read in this order: [`ids`] (what things are called), [`ranges`] and [`outcome`] (how items and
//! their ends are written down), [`envelope`] (what a message says), [`broker`] (how messages move and
//! are let go of), [`job`] (what a user asks for).

pub mod broker;
pub mod clock;
pub mod crash;
pub mod daemon;
pub mod envelope;
pub mod ids;
pub mod job;
pub mod outcome;
pub mod ranges;
pub mod resilience;
pub mod shutdown;
pub mod telemetry;
