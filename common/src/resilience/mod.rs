//! Policies that decide, without time or network of their own.

pub mod adaptive;
pub mod breaker;
mod failure_rate;
pub mod pause;
pub mod rate;
pub mod retry;
