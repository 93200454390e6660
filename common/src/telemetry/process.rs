//! What the kernel says about this process, read when the metrics are asked for.

use std::fmt::Write as _;
use std::fs;

/// The kernel's clock ticks per second in `/proc`: 100 on every architecture this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Metrics of this process in the Prometheus text format, under the names Prometheus clients share. Empty
/// where there is no `/proc`.
pub(super) fn text() -> String {
    let mut text = String::new();
    let mut say = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    say(
        "process_cpu_seconds_total",
        "counter",
        "CPU time used, in user and kernel mode.",
        cpu_seconds(&stat),
    );
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (name, help, field) in [
        ("process_resident_memory_bytes", "Memory in use.", "VmRSS:"),
        ("process_virtual_memory_bytes", "Address space in use.", "VmSize:"),
    ] {
        say(name, "gauge", help, kibibytes(&status, field).map(|kibibytes| kibibytes * 1024.0));
    }
    let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
    say("process_open_fds", "gauge", "Open files and sockets.", open);
    text
}

/// User and kernel time out of `/proc/self/stat`, whose second field, the name, may hold anything but ends
/// at the last parenthesis.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let kernel: f64 = fields.next()?.parse().ok()?;
    Some((user + kernel) / TICKS_PER_SECOND)
}

/// A `VmRSS:   1234 kB` line's number out of `/proc/self/status`.
fn kibibytes(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_shift_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        assert_eq!(kibibytes("VmPeak:\t 9 kB\nVmRSS:\t    2048 kB\n", "VmRSS:"), Some(2048.0));
        assert_eq!(kibibytes("VmPeak:\t 9 kB\n", "VmRSS:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory_and_files() {
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(text().contains(&format!("\n{name} ")), "{name}");
        }
    }
}
