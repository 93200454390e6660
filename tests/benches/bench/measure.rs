//! Taking turns, medians, and saying what came out.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use windrow_tests::fleet::Fleet;
use windrow_tests::process::Process;

/// How often each side runs.
fn runs() -> usize {
    std::env::var("WINDROW_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3)
}

/// Seconds of each run of each side.
#[derive(Debug)]
pub(crate) struct Turns {
    ours: Vec<f64>,
    rival: Vec<f64>,
}

/// Lets ours and the rival take turns; each gives its seconds.
pub(crate) fn take_turns(mut ours: impl FnMut() -> f64, mut rival: impl FnMut() -> f64) -> Turns {
    let mut turns = Turns { ours: Vec::new(), rival: Vec::new() };
    for _ in 0..runs() {
        turns.rival.push(rival());
        turns.ours.push(ours());
    }
    turns
}

impl Turns {
    /// Prints one line: what was measured, both medians with their ranges, and ours as a multiple of the rival's.
    pub(crate) fn report(&self, name: &str, rival: &str, items: u64) {
        println!(
            "{name}: ours {}, {rival} {}; time ratio {:.2}, speed ratio {:.2}; {:.0} items/s",
            spread(&self.ours),
            spread(&self.rival),
            median(&self.ours) / median(&self.rival),
            median(&self.rival) / median(&self.ours),
            items as f64 / median(&self.ours),
        );
    }
}

fn spread(seconds: &[f64]) -> String {
    let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = seconds.iter().copied().fold(0.0, f64::max);
    format!("{:.3} s ({least:.3}-{most:.3})", median(seconds))
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The wall seconds of a command that must succeed; its output is thrown away.
pub(crate) fn timed(command: &mut Command) -> f64 {
    let started = Instant::now();
    let output = command.output().expect("the command starts");
    let seconds = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    seconds
}

/// What a command prints on its standard output, as a number.
pub(crate) fn printed(command: &mut Command) -> f64 {
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

/// Writes `count` JSON lines of about 150 bytes.
pub(crate) fn write_items(path: &Path, count: u64) {
    let mut file = BufWriter::new(File::create(path).expect("the file can be made"));
    for index in 0..count {
        writeln!(
            file,
            "{{\"id\":{index},\"name\":\"Customer {index}\",\"email\":\"customer{index}@mail.example\",\
             \"amount\":{}.{:02},\"city\":\"Springfield\",\"active\":{},\"tags\":[\"a\",\"b\"]}}",
            index % 9_000 + 1_000,
            index % 100,
            index % 3 != 0,
        )
        .expect("the file can be written");
    }
    file.flush().expect("the file can be written");
}

/// Lines of a file.
pub(crate) fn lines(path: &Path) -> u64 {
    let data = std::fs::read(path).expect("the file is there");
    memchr::memchr_iter(b'\n', &data).count() as u64
}

/// How long a benchmark waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// A fleet with a collector and a consumer that are up.
pub(crate) struct Running {
    fleet: Fleet,
    runs: u32,
    _collector: Process,
    _consumer: Process,
}

impl Running {
    /// Starts them in `folder` with this job file, whose sink is `out.jsonl`.
    pub(crate) fn start(folder: &Path, broker: &str, job: &str) -> Self {
        let fleet = Fleet::new(folder, broker, job);
        let (collector, consumer) = fleet.start();
        Self { fleet, runs: 0, _collector: collector, _consumer: consumer }
    }

    /// Produces one run, waits for its end, and returns the wall seconds of the producer process. The sink must
    /// have `items` lines at the end; it is removed.
    pub(crate) fn run(&mut self, items: u64) -> f64 {
        self.runs += 1;
        let started = Instant::now();
        let status = self.fleet.producer(&format!("run-{}", self.runs), None).wait(PATIENCE);
        let seconds = started.elapsed().as_secs_f64();
        assert!(status.success(), "the producer ended with {status}");
        let sink = self.fleet.data().join("out.jsonl");
        assert_eq!(lines(&sink), items);
        std::fs::remove_file(&sink).expect("the sink is there");
        seconds
    }
}
