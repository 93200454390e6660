//! Peak memory of the three processes: 5,000,000 items against 500,000.

use tempfile::TempDir;
use windrow_tests::fleet::Fleet;
use windrow_tests::process::Process;
use windrow_tests::rabbitmq_server::RabbitMqServer;

use super::measure::{PATIENCE, write_items};
use super::throughput::job;

/// Peaks in MiB of producer, consumer and collector.
type Peaks = [f64; 3];

/// Runs both sizes and prints the peaks and their ratios.
pub(crate) fn peaks() {
    let server = RabbitMqServer::start_blocking();
    let small = run(&server, 500_000);
    let large = run(&server, 5_000_000);
    for (index, role) in ["producer", "consumer", "collector"].iter().enumerate() {
        println!(
            "Memory, {role}: {:.1} MiB at 500,000 items, {:.1} MiB at 5,000,000; ratio {:.2}",
            small[index],
            large[index],
            large[index] / small[index],
        );
    }
}

fn run(server: &RabbitMqServer, items: u64) -> Peaks {
    let folder = TempDir::new().expect("a folder");
    write_items(&folder.path().join("items.jsonl"), items);
    let fleet = Fleet::new(folder.path(), &server.uri(), &job(100));
    let (collector, consumer) = fleet.start();
    let mut producer = fleet.producer(&format!("run-{items}"), None);
    let mut peak = 0.0f64;
    let started = std::time::Instant::now();
    while producer.ended().is_none() {
        assert!(started.elapsed() < PATIENCE);
        peak = peak.max(peak_mib(producer.id()).unwrap_or(0.0));
        // The peak is the kernel's own; it only has to be read before the process is gone.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let of = |process: &Process| peak_mib(process.id()).expect("it is running");
    [peak, of(&consumer), of(&collector)]
}

/// The peak resident memory of a process, as the kernel kept it.
fn peak_mib(id: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
