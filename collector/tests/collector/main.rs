//! The collector from outside: its loop on a broker, its deaths, and its disks.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod broker_loop;
mod control;
mod crash;
mod full_disk;
mod notify;
mod support;
