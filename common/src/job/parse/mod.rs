//! From TOML to a checked job: each section is read as far as it can be, and whatever is wrong with it is
//! noted, so that one look at a file finds everything.

mod breaker;
mod keys;
mod notify;
mod processor;
mod rate;
mod section;
mod sink;
mod source;
mod stage;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use self::keys::NO_TYPE;
use self::section::{Faults, Section};
use super::{ChunkSpec, DestinationSpec, Job, Problem, Problems, ThrottleScope, Tolerance, hash};

/// A job file larger than this is refused: it is no job file.
const MAX_FILE_BYTES: u64 = 1 << 20;

pub(super) fn load(path: &Path) -> Result<Job, Problems> {
    let unreadable = |error| Problems::whole_file(path, format!("can't be read: {error}"));
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Problems::whole_file(path, "is over 1 MiB, which no job file is".to_owned()));
    }
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Job, Problems> {
    let faults = Faults::new(text);
    let root = match DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            faults.add(&error.span().unwrap_or(0..0), format!("not TOML: {}", error.message()), None);
            return Err(Problems::new(path, text, faults.into_list()));
        }
    };
    let job = read_job(path, &Section::new("the job file".to_owned(), &root, &faults));
    let problems = faults.into_list();
    match job {
        Some(job) if problems.is_empty() => Ok(job),
        _ => Err(Problems::new(path, text, or_a_bug(problems))),
    }
}

/// A job that could not be made is always explained.
fn or_a_bug(mut problems: Vec<Problem>) -> Vec<Problem> {
    if problems.is_empty() {
        let message = "refused without a reason: this is a bug, please report it with the file".to_owned();
        problems.push(Problem { line: 0, span: 0..0, message, help: None });
    }
    problems
}

fn read_job(path: &Path, root: &Section<'_>) -> Option<Job> {
    root.refuse_unknown_keys(&keys::ROOT, &NO_TYPE);
    root.require("name", "name = \"contacts-sync\"");
    let name = root.parsed("name", str::parse);
    let folder = path.parent().unwrap_or(Path::new(""));
    let sources = source::read_all(root, folder);
    let chunk = read_chunk(root);
    let destinations = read_destinations(root);
    let stages = stage::read_all(root, &chunk, &destinations);
    let sink = sink::read(root);
    let tolerate = sink::read_tolerance(root);
    let deadline = root.duration("deadline", Duration::from_secs(1));
    let notify = notify::read(root);
    let stages = stages?;
    Some(Job {
        name: name?,
        hash: hash::of_stages(&stages),
        path: path.to_owned(),
        sources: sources?,
        chunk,
        stages,
        destinations,
        sink: sink?,
        tolerate: tolerate.unwrap_or(Tolerance::All),
        deadline,
        notify,
    })
}

fn read_chunk(root: &Section<'_>) -> ChunkSpec {
    let section = root.table("chunk", "[chunk]".to_owned());
    let section = section.as_ref();
    if let Some(section) = section {
        section.refuse_unknown_keys(&keys::CHUNK, &NO_TYPE);
    }
    ChunkSpec {
        items: section.and_then(|chunk| chunk.integer("items", 1..=100_000)).unwrap_or(100),
        bytes: section.and_then(|chunk| chunk.bytes("bytes", 1..=8 << 20)).unwrap_or(256 << 10),
        budget: section
            .and_then(|chunk| chunk.duration("budget", Duration::from_secs(1)))
            .unwrap_or(Duration::from_secs(5 * 60)),
        outstanding: section.and_then(|chunk| chunk.integer("outstanding", 1..=1_000_000)).unwrap_or(2_000),
        compress: section.and_then(|chunk| chunk.flag("compress")).unwrap_or(false),
    }
}

const THROTTLES: [(&str, ThrottleScope); 2] =
    [("destination", ThrottleScope::Destination), ("item", ThrottleScope::Item)];

fn read_destinations(root: &Section<'_>) -> BTreeMap<String, DestinationSpec> {
    let mut destinations = BTreeMap::new();
    let Some(section) = root.table("destination", "[destination]".to_owned()) else {
        return destinations;
    };
    for (name, _) in section.entries() {
        // The rules for names are those of a stage: a destination's name too goes into metrics and paths.
        if let Err(error) = name.text.parse::<crate::ids::StageName>() {
            section.fault(&name.span, format!("destination: {error}"));
        }
        let title = format!("[destination.{}]", name.text);
        let Some(destination) = section.table(name.text, title) else {
            continue;
        };
        destination.refuse_unknown_keys(&keys::DESTINATION, &NO_TYPE);
        let max_connections = destination.small_integer("max_connections", 1..=100_000).unwrap_or(10);
        let (rates, rate_floor) = rate::read(&destination);
        let throttle = destination.choice("throttle", &THROTTLES).unwrap_or(ThrottleScope::Destination);
        let breaker = breaker::read(&destination);
        let spec = DestinationSpec { max_connections, rates, rate_floor, throttle, breaker };
        destinations.insert(name.text.to_owned(), spec);
    }
    destinations
}

#[cfg(test)]
mod tests;
