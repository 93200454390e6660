//! A small HTTP server for benchmarks: answers each request after a delay.
//!
//! `delay-server MILLISECONDS` prints its port on the first line and serves until it is ended.

use std::time::Duration;

use windrow_tests::destination::{Behaviour, Destination};

fn main() -> anyhow::Result<()> {
    let delay =
        std::env::args().nth(1).unwrap_or_else(|| "20".to_owned()).parse().map(Duration::from_millis)?;
    let destination = Destination::start(Behaviour { delay, ..Behaviour::default() });
    println!("{}", destination.address.port());
    loop {
        std::thread::park();
    }
}
