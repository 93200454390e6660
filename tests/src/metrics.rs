//! What a process says of itself at `--listen`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::process::{Process, wait_until};

/// The metrics of a process started with `--listen 127.0.0.1:0`.
#[derive(Debug, Clone, Copy)]
pub struct Metrics(SocketAddr);

impl Metrics {
    /// Reads in the log of `process` where it answers.
    pub fn of(process: &Process) -> Self {
        let address = || {
            let log = process.log();
            let line = log.lines().find(|line| line.contains("serving /metrics"))?.to_owned();
            let rest = line.split_once("address=")?.1.to_owned();
            rest.split_whitespace().next()?.trim_matches('"').parse().ok()
        };
        wait_until("the address of its metrics is logged", std::time::Duration::from_secs(60), || {
            address().is_some()
        });
        Self(address().unwrap())
    }

    /// The sum of a metric over all its labels; 0 when there is none of this name.
    pub fn sum(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.0).unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.0);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).flatten()
        };
        answer.lines().filter_map(value).sum()
    }
}
