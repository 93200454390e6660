//! Every item runs alone: however many run at once, no value of one item is ever seen in another's outcome.
//!
//! Each item carries values drawn for it alone, and text of a length drawn for it alone, so that a buffer used
//! again shows. Each output is computed from them, and every one is checked against its own item. A processor written
//! in Rust is held to the same in `consumer/src/chunk/tests/isolation.rs`.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use windrow_tests::account::{check_balance, report};
use windrow_tests::desk::json_lines;
use windrow_tests::front_door::FrontDoor;
use windrow_tests::seeded::Seeded;

const ITEMS: u64 = 100_000;

/// Programs are started by the operating system one by one: so many fit into a suite that is run often.
const PROGRAMS: u64 = 3_000;

/// How many programs to start in place of [`PROGRAMS`].
const PROGRAMS_VARIABLE: &str = "WINDROW_TEST_PROGRAMS";

/// Also for the long form.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// What the outputs say of a number is its remainder by this prime.
const PRIME: u64 = 65_521;

/// An item, and what is in it.
struct Drawn {
    number: u64,
    text: String,
}

impl Drawn {
    fn draw(seeded: &mut Seeded) -> Self {
        // As many digits as the numbers of every reader of JSON have.
        let number = seeded.below(1 << 53);
        let length = usize::try_from(seeded.below(200)).unwrap();
        let text = format!("{:x}", seeded.below(u64::MAX)).repeat(length / 16 + 1);
        Self { number, text }
    }

    fn item(&self) -> Value {
        json!({ "number": self.number, "text": self.text })
    }
}

/// Runs the stage over items drawn anew, 200 at once, and checks each output against its item.
fn check(stage: &str, items: u64, expected: impl Fn(u64, &Drawn) -> Value) {
    let mut seeded = Seeded::from_environment();
    let drawn: Vec<Drawn> = (0..items).map(|_| Drawn::draw(&mut seeded)).collect();
    let job = format!(
        "name = 'alone'\n[source]\ntype = 'jsonl'\npath = 'items.jsonl'\n[[stage]]\nconcurrency = 200\n{stage}\n\
         [sink]\ntype = 'jsonl'\npath = 'out.jsonl'\norder = 'input'\n"
    );
    let mut lines = String::new();
    for one in &drawn {
        writeln!(lines, "{}", one.item()).unwrap();
    }
    let folder = TempDir::new().unwrap();
    let door = FrontDoor::new(folder.path(), &job, 0);
    std::fs::write(door.items(), lines).unwrap();
    let mut run = door.run(None, &[]);
    assert!(run.wait(PATIENCE).success(), "{}", run.log());

    check_balance(&report(&door.run_folder()), items);
    let outputs = json_lines(&std::fs::read_to_string(door.sink()).unwrap());
    assert_eq!(outputs.len() as u64, items);
    for ((index, one), line) in (0..).zip(&drawn).zip(&outputs) {
        assert_eq!(line["item"], index, "{line}");
        assert_eq!(line["output"], expected(index, one), "item {index}, which is {}", one.item());
    }
}

#[test]
fn no_jq_output_has_anything_of_another_item() {
    let filter = format!("{{ text: (.text + .text), rest: (.number % {PRIME}) }}");
    check(
        &format!("type = 'jq'\nfilter = '{filter}'"),
        ITEMS,
        |_, one| json!({ "text": one.text.repeat(2), "rest": one.number % PRIME }),
    );
}

/// The ways an item comes to a program, each of which must bring the same one: its argument, its standard
/// input, its environment.
#[test]
fn no_program_sees_anything_of_another_item() {
    let items = std::env::var(PROGRAMS_VARIABLE).map_or(PROGRAMS, |items| items.parse().unwrap());
    let script = format!(
        r#"read -r line; printf "{{\"line\":%s,\"rest\":%s,\"index\":%s}}" "$line" $(($1 % {PRIME})) "$WINDROW_INDEX""#
    );
    let argv = format!(r#"argv = ["sh", "-c", '''{script}''', "sh", "{{{{ item.number }}}}"]"#);
    check(
        &format!("type = 'command'\noutput = 'json'\n{argv}"),
        items,
        |index, one| json!({ "line": one.item(), "rest": one.number % PRIME, "index": index }),
    );
}
