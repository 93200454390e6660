//! jq filters of a job file, run by jaq.
//!
//! A filter sees its item and nothing else: not the environment (`env`, `$ENV`), not other items (`input`,
//! `inputs`), no files (`import`, `include`), and it can't write to the console or end the process (`debug`,
//! `stderr`, `halt`). All of these are errors when a job is checked.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use jaq_core::data::{DataT, HasLut};
use jaq_core::load::{self, Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Exn, Lut, Vars, compile};
use jaq_json::{Val, read, write};

/// Steps (terms of the filter evaluated) for one item, at most: some seconds' worth.
pub const MAX_STEPS: u64 = 100_000_000;
/// JSON nested deeper than this, going in or coming out, fails the item.
pub const MAX_DEPTH: usize = 128;
/// What a failing filter says is cut to this.
const MAX_MESSAGE_CHARS: usize = 300;
/// How much of the stack a filter may take, which bounds its recursion; a thread of the runtime has twice that.
const MAX_STACK_BYTES: usize = 1 << 20;
/// How many steps go by between two looks at the clock.
const STEPS_PER_LOOK: u64 = 4_096;

/// Filters that reach outside the item.
const FORBIDDEN: [&str; 7] = ["env", "halt", "halt_error", "debug", "debug_empty", "stderr", "stderr_empty"];
/// In place of jaq's native `range`, whose steps nothing could count.
const RANGE: &str = "
    def range($from; $to; $by):
        def none: {}[] as $x | .;
        def up: if . < $to then ., (. + $by | up) else none end;
        def down: if . > $to then ., (. + $by | down) else none end;
        $from | if $by > 0 then up elif $by < 0 then down else none end;";

/// A compiled filter. Running it changes nothing in it, so it serves any number of items at once.
pub struct JqFilter(jaq_core::Filter<Item>);

/// A filter that does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a jq filter: {0}")]
pub struct JqError(String);

/// A filter that does not give its one output for an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JqRunError {
    /// The item is not JSON, or nested too deeply.
    #[error("the item is no JSON value of at most {MAX_DEPTH} levels")]
    Input,
    /// What the filter says, which may quote the item: for the item's failure record, not for a log.
    #[error("the filter failed: {0}")]
    Failed(String),
    /// No output.
    #[error("the filter gave no output, where one is needed")]
    None,
    /// More than one output.
    #[error("the filter gave several outputs, where one is needed: wrap it in [ ] to get an array")]
    Several,
    /// An output that JSON can't carry.
    #[error(
        "the filter's output is no JSON value of at most {MAX_DEPTH} levels (NaN, infinity, bytes or non-string keys)"
    )]
    Output,
    /// It took longer than it may.
    #[error("the filter did not end in time")]
    Deadline,
    /// It called itself too often without coming back.
    #[error("the filter calls itself too deeply")]
    TooDeep,
    /// It took more than [`MAX_STEPS`].
    #[error("the filter took over {MAX_STEPS} steps")]
    TooManySteps,
}

impl JqFilter {
    /// Compiles a filter. The error says what was expected where, or what is not defined.
    pub fn compile(filter: &str) -> Result<Self, JqError> {
        let own = load::parse(RANGE, |parser| parser.defs()).unwrap_or_default();
        let library = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
        let allowed = library.filter(|def| !FORBIDDEN.contains(&def.name));
        let arena = Arena::default();
        let modules = Loader::new(own.into_iter().chain(allowed))
            .load(&arena, File { code: filter, path: () })
            .map_err(|errors| JqError(load_error(filter, errors)))?;
        load::import(&modules, |_| Err("not available here".to_owned()))
            .map_err(|errors| JqError(load_error(filter, errors)))?;
        let natives = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
        Compiler::default()
            .with_funs(natives.filter(|(name, _, _)| *name != "range" && !FORBIDDEN.contains(name)))
            .compile(modules)
            .map(Self)
            .map_err(|errors| JqError(compile_error(errors)))
    }

    /// The filter's one output for the JSON value `input`, as JSON without spaces; keys keep their order.
    ///
    /// After `deadline` it ends with [`JqRunError::Deadline`], except within a single operation of jq's own
    /// (a `sort`, a regular expression), which is let finish.
    pub fn run_one(&self, input: &[u8], deadline: Option<Instant>) -> Result<Vec<u8>, JqRunError> {
        let output = self.run(input, deadline)?;
        let mut json = Vec::new();
        let written = write::write(&mut json, &write::Pp::default(), 0, &output);
        match written {
            Ok(()) if serde_json::from_slice::<serde::de::IgnoredAny>(&json).is_ok() => Ok(json),
            _ => Err(JqRunError::Output),
        }
    }

    /// Whether the filter's one output is anything but false and null.
    pub fn run_truthy(&self, input: &[u8], deadline: Option<Instant>) -> Result<bool, JqRunError> {
        self.run(input, deadline).map(|output| !matches!(output, Val::Null | Val::Bool(false)))
    }

    fn run(&self, input: &[u8], deadline: Option<Instant>) -> Result<Val, JqRunError> {
        if depth_of(input) > MAX_DEPTH {
            return Err(JqRunError::Input);
        }
        let input = read::parse_single(input).map_err(|_| JqRunError::Input)?;
        self.run_metered(input, &Meter::new(deadline, MAX_STEPS))
    }

    fn run_metered(&self, input: Val, meter: &Meter) -> Result<Val, JqRunError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let context = Ctx::<Item>::new(Watched { lut: &self.0.lut, meter }, Vars::new([]));
            let mut outputs = self.0.id.run((context, input));
            let first = outputs.next().ok_or(JqRunError::None)?.map_err(failure)?;
            match outputs.next() {
                None => Ok(first),
                Some(Ok(_)) => Err(JqRunError::Several),
                Some(Err(error)) => Err(failure(error)),
            }
        }));
        match outcome {
            Ok(Ok(output)) if !is_shallow(&output, 1) => Err(JqRunError::Output),
            Ok(result) => result,
            Err(payload) => match payload.downcast::<JqRunError>() {
                Ok(stopped) => Err(*stopped),
                Err(_) => Err(JqRunError::Failed("the jq library panicked".to_owned())),
            },
        }
    }
}

impl std::fmt::Debug for JqFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JqFilter(..)")
    }
}

/// What a filter works on, for jaq.
struct Item;

impl DataT for Item {
    type V<'a> = Val;
    type Data<'a> = Watched<'a>;
}

/// The compiled terms, which jaq asks for at each step, and the meter that counts these steps.
#[derive(Clone)]
struct Watched<'a> {
    lut: &'a Lut<Item>,
    meter: &'a Meter,
}

impl<'a> HasLut<'a, Item> for Watched<'a> {
    fn lut(&self) -> &'a Lut<Item> {
        self.meter.step();
        self.lut
    }
}

struct Meter {
    deadline: Option<Instant>,
    steps_left: Cell<u64>,
    stack_at_start: usize,
}

impl Meter {
    fn new(deadline: Option<Instant>, most_steps: u64) -> Self {
        Self { deadline, steps_left: Cell::new(most_steps), stack_at_start: stack_position() }
    }

    /// Counts a step. jaq has no way to be told to stop, so a filter over its bounds is unwound.
    fn step(&self) {
        let left = self.steps_left.get();
        if left == 0 {
            resume_unwind(Box::new(JqRunError::TooManySteps));
        }
        self.steps_left.set(left - 1);
        if self.stack_at_start.abs_diff(stack_position()) > MAX_STACK_BYTES {
            resume_unwind(Box::new(JqRunError::TooDeep));
        }
        let is_look = left.is_multiple_of(STEPS_PER_LOOK);
        if is_look && self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            resume_unwind(Box::new(JqRunError::Deadline));
        }
    }
}

/// About where the stack ends now: the address of something on it.
#[inline(never)]
fn stack_position() -> usize {
    let here = 0u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

fn failure(exception: Exn<'_, Val>) -> JqRunError {
    let text = match exception.get_err() {
        Ok(error) => match error.into_val() {
            Val::TStr(text) => String::from_utf8_lossy(&text).into_owned(),
            other => other.to_string(),
        },
        Err(_) => "it stopped itself".to_owned(),
    };
    JqRunError::Failed(text.chars().take(MAX_MESSAGE_CHARS).collect())
}

/// The deepest nesting of JSON text, without parsing it: the parser recurses, and deep input from outside
/// would overflow the stack.
fn depth_of(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        match (byte, in_string) {
            _ if escaped => escaped = false,
            (b'\\', true) => escaped = true,
            (b'"', _) => in_string = !in_string,
            (b'[' | b'{', false) => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (b']' | b'}', false) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn is_shallow(value: &Val, depth: usize) -> bool {
    match value {
        Val::Arr(_) | Val::Obj(_) if depth > MAX_DEPTH => false,
        Val::Arr(values) => values.iter().all(|value| is_shallow(value, depth + 1)),
        Val::Obj(entries) => entries.values().all(|value| is_shallow(value, depth + 1)),
        _ => true,
    }
}

fn load_error(filter: &str, errors: load::Errors<&str, ()>) -> String {
    let mut words = Vec::new();
    for (_, error) in errors {
        match error {
            load::Error::Io(errors) => {
                words.extend(errors.iter().map(|(path, error)| format!("can't import \"{path}\": {error}")));
            }
            load::Error::Lex(errors) => {
                words.extend(errors.iter().map(|(wanted, at)| expected(filter, wanted.as_str(), at)));
            }
            load::Error::Parse(errors) => {
                words.extend(errors.iter().map(|(wanted, at)| expected(filter, wanted.as_str(), at)));
            }
        }
    }
    words.join("; ")
}

/// `at` is a part of `filter`, or empty at its end.
fn expected(filter: &str, wanted: &str, at: &str) -> String {
    let found: String = at.chars().take(20).collect();
    let found = if found.is_empty() { "the end".to_owned() } else { format!("`{found}`") };
    let offset = (at.as_ptr() as usize).wrapping_sub(filter.as_ptr() as usize);
    let line = filter.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
    let place = if line > 1 { format!(" (line {line} of the filter)") } else { String::new() };
    format!("expected {wanted}, found {found}{place}")
}

fn compile_error(errors: compile::Errors<&str, ()>) -> String {
    let undefined = errors.into_iter().flat_map(|(_, errors)| errors);
    let words: Vec<String> =
        undefined.map(|(name, kind)| format!("there is no {} `{name}`", kind.as_str())).collect();
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run(filter: &str, input: &str) -> Result<String, JqRunError> {
        let output = JqFilter::compile(filter).unwrap().run_one(input.as_bytes(), None)?;
        Ok(String::from_utf8(output).unwrap())
    }

    #[test]
    fn the_one_output_keeps_keys_in_order_and_numbers_whole() {
        let item = r#"{"z":1,"a":[1.10,12345678901234567890123,"é\n\u0001"],"m":null}"#;
        assert_eq!(run(".", item).unwrap(), item);
        assert_eq!(run("{z, b: (.a | length), a: .z}", item).unwrap(), r#"{"z":1,"b":3,"a":1}"#);
        assert_eq!(run("[.[] | numbers]", "[1,\"a\",2]").unwrap(), "[1,2]");
        assert_eq!(run("[range(3), range(3; 0; -1), range(1; 2; 0)]", "0").unwrap(), "[0,1,2,3,2,1]");
    }

    #[test]
    fn no_output_several_and_errors_fail() {
        assert_eq!(run("empty", "1"), Err(JqRunError::None));
        assert_eq!(run(".[]", "[1,2]"), Err(JqRunError::Several));
        assert_eq!(run("1, error(\"no\")", "1"), Err(JqRunError::Failed("no".to_owned())));
        assert_eq!(run("error(\"no \" + .)", "\"way\""), Err(JqRunError::Failed("no way".to_owned())));
        assert!(matches!(run(".a", "[]"), Err(JqRunError::Failed(_))));
        assert_eq!(run(".", "{"), Err(JqRunError::Input));
        assert_eq!(run("nan", "1"), Err(JqRunError::Output));
        assert_eq!(run("{(1|tostring): infinite}", "1"), Err(JqRunError::Output));
    }

    #[test]
    fn conditions_take_anything_but_false_and_null_for_true() {
        let truthy =
            |filter: &str| JqFilter::compile(filter).unwrap().run_truthy(b"{\"a\":0}", None).unwrap();
        assert!(truthy(".a") && truthy("\"\"") && truthy(".a == 0"));
        assert!(!truthy(".b") && !truthy("false"));
    }

    #[test]
    fn a_filter_reaches_nothing_outside_its_item() {
        for filter in [
            "env",
            "$ENV",
            "env.HOME",
            "input",
            "inputs",
            "halt",
            "halt_error",
            "debug",
            "stderr",
            "input_filename",
        ] {
            let error = JqFilter::compile(filter).unwrap_err().to_string();
            assert!(error.contains("there is no"), "{filter}: {error}");
        }
        for filter in ["import \"a\" as a; .", "include \"a\"; .", "import \"a\" as $a; $a"] {
            let error = JqFilter::compile(filter).unwrap_err().to_string();
            assert!(error.contains("can't import"), "{filter}: {error}");
        }
    }

    #[test]
    fn what_does_not_compile_says_what_and_where() {
        let error = |filter: &str| JqFilter::compile(filter).unwrap_err().to_string();
        assert_eq!(error(".a | nosuch"), "not a jq filter: there is no filter `nosuch`");
        assert!(error("{a: .b").contains("expected closing brace"), "{}", error("{a: .b"));
        let second_line = error(".a |\n| .b");
        assert!(second_line.contains("line 2"), "{second_line}");
    }

    #[test]
    fn endless_filters_end_at_the_deadline_or_after_their_steps() {
        let deadline = Some(Instant::now() + Duration::from_millis(50));
        for filter in
            ["def f: f; f", "[range(infinite)] | length", "[repeat(1)]", "last(range(1e15))", "repeat(empty)"]
        {
            let filter = JqFilter::compile(filter).unwrap();
            assert_eq!(filter.run_one(b"1", deadline), Err(JqRunError::Deadline));
        }
        let filter = JqFilter::compile("reduce range(1e9) as $n (0; . + 1)").unwrap();
        let meter = Meter::new(None, 100_000);
        assert!(matches!(filter.run_metered(Val::Null, &meter), Err(JqRunError::TooManySteps)));
    }

    #[test]
    fn endless_recursion_fails_its_item_and_not_the_process() {
        for filter in ["def f: 1 + f; f", "def f: [f]; f", "def f($n): {a: f($n + 1)}; f(0)"] {
            assert_eq!(run(filter, "1"), Err(JqRunError::TooDeep), "{filter}");
        }
        let deep = "def f($n): if $n == 0 then 0 else 1 + f($n - 1) end; f(60)";
        assert_eq!(run(deep, "1").unwrap(), "60");
    }

    #[test]
    fn deep_nesting_is_refused_on_both_sides() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(run(".", &nested(MAX_DEPTH)).is_ok());
        assert_eq!(run(".", &nested(MAX_DEPTH + 1)), Err(JqRunError::Input));
        assert_eq!(run(".", &nested(5_000_000)), Err(JqRunError::Input));
        assert!(run(".", "\"[[[[\\\"[[\"").is_ok());
        assert_eq!(run("[.]", &nested(MAX_DEPTH)), Err(JqRunError::Output));
    }

    #[test]
    fn one_filter_serves_many_threads() {
        let filter = JqFilter::compile(".n * 2").unwrap();
        std::thread::scope(|scope| {
            for n in 0..4u32 {
                let filter = &filter;
                scope.spawn(move || {
                    let input = format!("{{\"n\":{n}}}");
                    let output = filter.run_one(input.as_bytes(), None).unwrap();
                    assert_eq!(String::from_utf8(output).unwrap(), (n * 2).to_string());
                });
            }
        });
    }
}
