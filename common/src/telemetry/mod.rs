//! What a process says about itself: logs, metrics, and a small web server for both machines and people
//! who ask whether it lives and is ready.

mod connections;
mod families;
pub mod listen;
pub mod logging;
pub mod metrics;
mod process;
