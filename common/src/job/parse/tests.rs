mod limits;

use super::*;
use crate::job::{
    Bounds, BreakerSpec, CommandOutput, Concurrency, EnvText, FailureRate, FieldType, FileSink, IfExists,
    NotifyEvent, OnReject, ProcessorSpec, RetrySpec, Schedule, SinkOrder, SinkSpec, SourceKind, SourcePath,
};

/// A job file around what a test is about.
fn file(rest: &str) -> String {
    let source = "[source]\ntype = 'jsonl'\npath = 'items.jsonl'\n";
    let stage = "[[stage]]\ntype = 'echo'\n";
    let mut text = String::from("name = 'test'\n");
    text += if rest.contains("source]") { "" } else { source };
    text += if rest.contains("stage]") { "" } else { stage };
    text + rest
}

fn parsed(rest: &str) -> Job {
    parse(Path::new("jobs/job.toml"), &file(rest)).unwrap_or_else(|problems| panic!("{problems}"))
}

/// What is wrong with a job file, a line a problem and without the file's name.
fn problems(rest: &str) -> Vec<String> {
    let problems = parse(Path::new("job.toml"), &file(rest)).expect_err(rest);
    problems.lines().map(|line| line.trim_start_matches("job.toml:").to_owned()).collect()
}

fn problem(rest: &str) -> String {
    let problems = problems(rest);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.concat()
}

#[test]
fn a_job_file_of_the_design_is_read_with_its_defaults() {
    let text = include_str!("contacts.toml");
    let job = parse(Path::new("jobs/contacts.toml"), text).unwrap();
    let minutes = |count: u64| Duration::from_secs(60 * count);
    assert_eq!(job.name.as_str(), "contacts-sync");
    assert_eq!(job.sources.len(), 1);
    let source = &job.sources[0];
    assert_eq!(source.kind, SourceKind::Csv { delimiter: b',', types: BTreeMap::new() });
    assert_eq!(source.path, SourcePath::Files("jobs/data/contacts-*.csv".into()));
    assert_eq!((source.name.as_str(), source.id.as_deref()), ("main", Some("email")));
    assert_eq!(source.on_reject, OnReject::Continue);
    let chunk =
        ChunkSpec { items: 100, bytes: 262_144, budget: minutes(5), outstanding: 2_000, compress: false };
    assert_eq!(job.chunk, chunk);
    let stage = &job.stages[0];
    assert_eq!((stage.concurrency, stage.timeout), (Concurrency::Fixed(50), minutes(10)));
    let retry = RetrySpec {
        count: 3,
        interval: Duration::from_secs(30),
        schedule: Schedule::Exponential,
        max_interval: minutes(15),
        in_place_below: Duration::from_secs(2),
    };
    assert_eq!(stage.retry, retry);
    assert_eq!((stage.when.as_deref(), stage.skip_when.as_deref()), (Some(".active"), None));
    let ProcessorSpec::Http(http) = &stage.processor else { panic!("{stage:?}") };
    assert_eq!(http.method, "POST");
    assert_eq!(http.headers["authorization"].as_written(), "Bearer ${CRM_TOKEN}");
    assert_eq!(http.retry_statuses, [408, 425, 429, 500, 502, 503, 504]);
    assert_eq!(http.max_response_bytes, 1 << 20);
    assert_eq!(job.destinations["crm"].max_connections, 10);
    let path = "out/contacts.jsonl".into();
    assert_eq!(
        job.sink,
        SinkSpec::Jsonl(FileSink { path, order: SinkOrder::Input, if_exists: IfExists::Error })
    );
    assert_eq!(job.tolerate, Tolerance::Share(0.05));
    assert_eq!(job.missing_variables(&|_| None).len(), 1);
}

#[test]
fn the_defaults_are_those_that_the_designs_example_spells_out() {
    let text = include_str!("contacts.toml");
    let spelled_out = parse(Path::new("jobs/contacts.toml"), text).unwrap();
    let defaults: Vec<&str> = text.lines().filter(|line| !line.ends_with("# the default")).collect();
    assert!(defaults.len() + 7 <= text.lines().count(), "the example spells out its defaults");
    let left_out = parse(Path::new("jobs/contacts.toml"), &defaults.join("\n")).unwrap();
    assert_eq!(left_out, spelled_out);
}

#[test]
fn ten_faults_in_a_job_file_are_reported_in_ten_lines() {
    let text = "\
name = 'not a name'
colour = 'blue'
[source]
type = 'cvs'
[chunk]
bytes = '256 Kub'
[[stage]]
type = 'http'
url = 'https://example.org/{{ item.id'
retries = 3
timeout = 30
destination = 'crm'
when = '.a |'
[sink]
type = 'parquet'
[notify]
on = ['run_filed']
";
    let problems = parse(Path::new("job.toml"), text).unwrap_err();
    let expected = [
        "job.toml:1: `name`: `not a name` is not a name: use 1 to 64 letters, digits, `-`, `_` or `.`, beginning \
         with a letter or digit",
        "job.toml:2: unknown key `colour` in the job file; it has `name`, `source`, `chunk`, `stage`, \
         `destination`, `sink`, `tolerate`, `deadline` and `notify`",
        "job.toml:3: [source] needs `path`; for example `path = \"data/items.csv\"`",
        "job.toml:4: `type` can't be \"cvs\"; did you mean `csv`?",
        "job.toml:6: `bytes`: `256 Kub` is not a size: write \"256 KiB\", \"1 MB\" or a number of bytes",
        "job.toml:9: `url`: syntax error: unexpected end of input, expected end of variable block",
        "job.toml:10: unknown key `retries` in [[stage]]; did you mean `retry`?",
        "job.toml:11: `timeout` must be a duration such as \"30s\" or \"PT30S\", not an integer",
        "job.toml:12: unknown destination `crm`; declare it as [destination.crm]",
        "job.toml:13: `when`: not a jq filter: expected term, found the end",
        "job.toml:15: type \"parquet\" of [sink] is not in this version yet; it has `jsonl` and `none`",
        "job.toml:16: [notify] needs `url` or `command`; for example `url = \"${OPS_WEBHOOK}\"`",
        "job.toml:17: `on` can't be \"run_filed\"; did you mean `run_failed`?",
    ];
    assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
    assert_eq!(problems.to_string().lines().count(), expected.len());
}

#[test]
fn a_syntax_error_is_one_problem_with_its_line() {
    assert_eq!(
        problem("[chunk]\nitems = \n"),
        "8: not TOML: string values must be quoted, expected literal string"
    );
    assert_eq!(problem("type = 'again'\n"), "7: not TOML: duplicate key");
}

#[test]
fn what_a_later_version_brings_is_refused_by_name() {
    let later = "is not in this version yet";
    for (rest, line) in [
        ("[notify]\non = ['breaker_open']\nurl = 'http://x'\n", "8: event \"breaker_open\""),
        ("[notify]\non = ['run_failed']\nurl = '${A}'\nemail = 'a@b'\n", "10: `email` of [notify]"),
        ("[[stage]]\ntype = 'worker'\nexec = 'x'\n", "6: type \"worker\" of [[stage]]"),
        ("[[stage]]\ntype = 'echo'\nfan_out = true\n", "7: `fan_out` of [[stage]]"),
        ("[source]\ntype = 'postgres'\nquery = 'select 1'\n", "5: type \"postgres\" of [source]"),
        ("[sink]\ntype = 'csv'\ncolumns = ['a']\n", "8: type \"csv\" of [sink]"),
    ] {
        let found = problem(rest);
        assert!(found.starts_with(&format!("{line} {later}")), "{found}");
    }
    let two = "[[stage]]\ntype = 'echo'\n[[stage]]\ntype = 'jq'\nfilter = '.'\n";
    assert_eq!(problem(two), "7: several stages are not in this version yet; keep one `[[stage]]`");
}

#[test]
fn an_unknown_key_says_where_it_belongs_or_what_is_near() {
    for (rest, help) in [
        (
            "[source]\ntype = 'jsonl'\npath = 'x'\ndelimiter = ';'\n",
            "it belongs to type `csv`, and this one is `jsonl`",
        ),
        (
            "[[stage]]\ntype = 'jq'\nfilter = '.'\nurl = 'x'\n",
            "it belongs to type `http`, and this one is `jq`",
        ),
        ("[chunk]\ntimeout = '5s'\n", "it belongs in [[stage]]"),
        ("[chunk]\nitem = 5\n", "did you mean `items`?"),
        ("[tolerate]\nfailures = 5\n", "did you mean `failed`?"),
    ] {
        let found = problem(rest);
        assert!(found.contains("unknown key") && found.ends_with(help), "{found}");
    }
}

#[test]
fn every_key_of_a_csv_source_is_read() {
    let job = parsed(
        "[source]\ntype = 'csv'\nname = 'eu'\npath = '/data/x.csv.gz'\ndelimiter = \"\\t\"\non_reject = 'stop'\n\
         types = { a = 'int', b = 'float', c = 'bool', d = 'json', e = 'string' }\n",
    );
    let types = [
        ("a", FieldType::Int),
        ("b", FieldType::Float),
        ("c", FieldType::Bool),
        ("d", FieldType::Json),
        ("e", FieldType::Text),
    ];
    let types = types.map(|(column, field)| (column.to_owned(), field)).into();
    let source = &job.sources[0];
    assert_eq!(source.kind, SourceKind::Csv { delimiter: b'\t', types });
    assert_eq!(source.path, SourcePath::Files("/data/x.csv.gz".into()));
    assert_eq!((source.name.as_str(), source.on_reject), ("eu", OnReject::Stop));
}

#[test]
fn several_sources_have_names_of_their_own() {
    let one = "[[source]]\nname = 'a'\ntype = 'json'\npath = '-'\n";
    assert_eq!(parsed(one).sources[0].path, SourcePath::StandardInput);
    assert_eq!(
        parsed(&format!("{one}{}", one.replace("'a'", "'b'").replace("'-'", "'x.json'"))).sources.len(),
        2
    );
    let found = problems(&format!("{one}{one}[[source]]\ntype = 'json'\npath = 'x'\n"));
    let expected =
        ["two sources are called `a`", "two sources read standard input", "[[source]] needs `name`"];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn every_key_of_the_other_sections_is_read() {
    let job = parsed(
        "[chunk]\nitems = 7\nbytes = 1_000\nbudget = '1m'\noutstanding = 3\ncompress = true\n\
         [sink]\ntype = 'jsonl'\npath = 'x'\norder = 'arrival'\nif_exists = 'append'\n[tolerate]\nfailed = 12\n\
         [[stage]]\nname = 'do'\ntype = 'command'\nargv = ['sh', '-c', 'x {{ item.a }}']\noutput = 'json'\n\
         max_output_bytes = '2 KiB'\nretry_exit_codes = [75, 1, 75]\nskip_when = '.done'\nconcurrency = 2\n\
         retry = { count = 0, interval = '1h', type = 'fixed', in_place_below = '0s' }\n",
    );
    let budget = Duration::from_secs(60);
    assert_eq!(job.chunk, ChunkSpec { items: 7, bytes: 1_000, budget, outstanding: 3, compress: true });
    let file = FileSink { path: "x".into(), order: SinkOrder::Arrival, if_exists: IfExists::Append };
    assert_eq!(job.sink, SinkSpec::Jsonl(file));
    assert_eq!(job.tolerate, Tolerance::Count(12));
    let stage = &job.stages[0];
    let ProcessorSpec::Command(command) = &stage.processor else { panic!("{stage:?}") };
    assert_eq!(command.argv.len(), 3);
    assert_eq!((command.output, command.max_output_bytes), (CommandOutput::Json, 2_048));
    assert_eq!(command.retry_exit_codes.as_deref(), Some([1, 75].as_slice()));
    let hour = Duration::from_secs(3_600);
    let retry = RetrySpec {
        count: 0,
        interval: hour,
        schedule: Schedule::Fixed,
        max_interval: hour,
        in_place_below: Duration::ZERO,
    };
    assert_eq!(stage.retry, retry, "an interval over the default maximum is its own maximum");
}

#[test]
fn who_is_told_of_what_is_read_and_judged() {
    let job = parsed(
        "[notify]\non = ['run_failed', 'run_completed', 'run_failed']\nurl = '${HOOK}/x'\ncommand = ['mail']\n",
    );
    let notify = job.notify.unwrap();
    assert_eq!(notify.on, [NotifyEvent::RunCompleted, NotifyEvent::RunFailed]);
    assert_eq!(
        (notify.url, notify.command),
        (Some(EnvText::new("${HOOK}/x")), Some(vec![EnvText::new("mail")]))
    );
    assert_eq!(parsed("").notify, None);
    for (rest, expected) in [
        ("on = []\nurl = 'http://x'\n", "`on` must name an event"),
        ("on = ['run_failed']\nurl = 'ftp://x'\n", "`url` must begin with"),
        ("on = ['run_failed']\nurl = 'http://${'\n", "`url`: `${`"),
        ("on = ['run_failed']\ncommand = []\n", "`command` must name a program"),
        ("url = 'http://x'\n", "[notify] needs `on`"),
    ] {
        let found = problem(&format!("[notify]\n{rest}"));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn an_http_stage_takes_its_method_from_whether_it_has_a_body() {
    let method = |rest: &str| {
        let job = parsed(&format!("[[stage]]\ntype = 'http'\nurl = 'https://x/'\n{rest}"));
        match &job.stages[0].processor {
            ProcessorSpec::Http(http) => http.method.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        [method(""), method("body = 'x'\n"), method("body = 'x'\nmethod = 'PUT'\n")],
        ["GET", "POST", "PUT"]
    );
}

#[test]
fn a_chunk_must_end_before_the_broker_takes_it_back() {
    let file = |budget: &str| format!("[chunk]\nbudget = '{budget}'\n[[stage]]\ntype = 'echo'\n");
    parsed(&file("14m"));
    let found = problem(&file("14m1s"));
    assert!(found.contains("`budget` (14m1s) and `timeout` (10m) together are over 24m"), "{found}");
    let found = problem("[[stage]]\ntype = 'echo'\ntimeout = 'PT20M'\n");
    assert!(found.starts_with("7: ") && found.contains("make one of them shorter"), "{found}");
}

#[test]
fn what_can_not_be_meant_is_refused() {
    for (rest, expected) in [
        ("[[stage]]\ntype = 'http'\nurl = 'http://x/'\nheaders = {Content-Length = '5'}\n", "take it out"),
        ("[chunk]\nitems = 0\n", "`items` must be a whole number from 1 to 100000"),
        ("[chunk]\nitems = 'ten'\n", "`items` must be a whole number from 1 to 100000, not a string"),
        ("[chunk]\nbytes = '9 MiB'\n", "`bytes` must be from 1 B to 8 MiB"),
        (
            "[chunk]\nbytes = true\n",
            "`bytes` must be a size such as \"256 KiB\" or a number of bytes, not a boolean",
        ),
        ("[chunk]\nbudget = '0s'\n", "`budget` must be at least 1s"),
        ("[chunk]\ncompress = 'yes'\n", "`compress` must be true or false, not a string"),
        ("[tolerate]\nfailed = '101%'\n", "`failed` must be a count such as 10 or a share"),
        ("[tolerate]\nfailed = -1\n", "`failed` must be a count"),
        ("[destination.d]\nrate = '10'\n", "`10` is not a rate: write calls and a unit of time"),
        ("[destination.d]\nrate = ['10/s', '0/d']\n", "`0/d` is not a rate"),
        ("[destination.d]\nrate = ['10/s', '20/s']\n", "two limits for the same window"),
        ("[destination.d]\nrate = 10\n", "`rate` must be"),
        ("[destination.d]\nrate_floor = '1/s'\n", "`rate_floor` means nothing without `rate`"),
        ("[sink]\ntype = 'jsonl'\n", "[sink] needs `path`"),
        ("[sink]\ntype = 'jsonl'\npath = '${OUT}/x'\n", "can't have `${NAME}` in it"),
        ("[destination.'a b']\n", "`a b` is not a name"),
        ("[destination]\ncrm = 5\n", "[destination.crm] must be a table, not an integer"),
        ("[source]\ntype = 'csv'\npath = 'x'\ndelimiter = ';;'\n", "`delimiter` must be one ASCII character"),
        ("[source]\ntype = 'csv'\npath = 'x'\ntypes = {a = 'integer'}\n", "`types.a` can't be \"integer\""),
        ("[stage]\ntype = 'echo'\n", "`stage` must be an array of tables"),
        ("[[stage]]\nname = 'x'\n", "[[stage]] needs `type`"),
        ("[[stage]]\ntype = 'jq'\n", "[[stage]] needs `filter`"),
        ("[[stage]]\ntype = 'jq'\nfilter = '.a | nosuch'\n", "there is no filter `nosuch`"),
        (
            "[[stage]]\ntype = 'http'\nurl = 'crm.example/x'\n",
            "`url` must begin with `http://` or `https://`",
        ),
        ("[[stage]]\ntype = 'http'\nurl = 'http://x/{{ itm.id }}'\n", "`url`: `itm` is unknown"),
        ("[[stage]]\ntype = 'http'\nurl = 'http://x/${A'\n", "`url`: `${` must be followed by a name"),
        (
            "[[stage]]\ntype = 'http'\nurl = 'http://x/'\nheaders = {'a b' = 'x'}\n",
            "can't be the name of a header",
        ),
        (
            "[[stage]]\ntype = 'http'\nurl = 'http://x/'\nheaders = {a = 'x', A = 'y'}\n",
            "the header `a` is there twice",
        ),
        ("[[stage]]\ntype = 'http'\nurl = 'http://x/'\nmethod = 'post'\n", "`method` can't be \"post\""),
        (
            "[[stage]]\ntype = 'http'\nurl = 'http://x/'\nretry_statuses = [200]\n",
            "HTTP statuses from 400 to 599",
        ),
        ("[[stage]]\ntype = 'command'\nargv = []\n", "`argv` must name a program"),
        ("[[stage]]\ntype = 'command'\nargv = 'ls'\n", "`argv` must be a list"),
        ("[[stage]]\ntype = 'command'\nargv = ['ls', 5]\n", "`argv` must be a string, not an integer"),
        ("[[stage]]\ntype = 'command'\nargv = ['x']\nretry_exit_codes = [0]\n", "exit codes from 1 to 255"),
        ("[[stage]]\ntype = 'echo'\nretry = 3\n", "`retry` must be a table, not an integer"),
        (
            "[[stage]]\ntype = 'echo'\nretry = {max_interval = '1s'}\n",
            "`max_interval` (1s) must not be shorter than",
        ),
    ] {
        let found = problem(rest);
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_file_that_lacks_everything_says_all_of_it() {
    let problems = parse(Path::new("job.toml"), "").unwrap_err();
    let expected = [
        "job.toml:1: the job file needs `name`; for example `name = \"contacts-sync\"`",
        "job.toml:1: the job file needs a source; add a `[source]`",
        "job.toml:1: the job file needs a stage; add a `[[stage]]`",
    ];
    assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_file_that_can_not_be_read_is_one_problem() {
    let folder = tempfile::tempdir().unwrap();
    let missing = load(&folder.path().join("none.toml")).unwrap_err().to_string();
    assert!(missing.contains("none.toml: can't be read"), "{missing}");
    let large = folder.path().join("large.toml");
    std::fs::write(&large, vec![b'#'; 2 << 20]).unwrap();
    assert!(load(&large).unwrap_err().to_string().ends_with("is over 1 MiB, which no job file is"));
}

#[test]
fn a_terminal_sees_the_line_with_a_mark_under_it() {
    let problems = parse(Path::new("job.toml"), &file("[chunk]\nitem = 5\n")).unwrap_err();
    let drawn = problems.render(80, false);
    for part in
        ["unknown key `item` in [chunk]", "job.toml:8:1", "8 │ item = 5", "────", "did you mean `items`?"]
    {
        assert!(drawn.contains(part), "{drawn}");
    }
    assert!(!drawn.contains('\u{1b}'));
    assert!(problems.render(80, true).contains('\u{1b}'));
}

/// The job files in the manual, and this version's examples, are job files.
#[test]
fn every_example_of_the_manual_is_a_job_file() {
    let manual = include_str!("../../../../docs/job-file.md");
    let examples: Vec<&str> =
        manual.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 3, "the manual has examples");
    for example in examples {
        if let Err(problems) = parse(Path::new("job.toml"), example) {
            panic!("{problems}\n\n{example}");
        }
    }
}

#[test]
fn every_job_file_of_the_examples_is_one() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut count = 0;
    for folder in examples.read_dir().unwrap() {
        let job = folder.unwrap().path().join("job.toml");
        if job.is_file() {
            load(&job).unwrap_or_else(|problems| panic!("{problems}"));
            count += 1;
        }
    }
    assert!(count >= 2, "{count}");
}
