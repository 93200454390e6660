//! Limits: of destinations, of time, of what runs at once.

use super::*;

#[test]
fn a_breaker_is_on_by_its_defaults_unless_it_is_false() {
    let breaker = |text: &str| {
        let job = format!(
            "name = 'a'\n[source]\ntype = 'jsonl'\npath = 'a'\n[[stage]]\ntype = 'echo'\n[destination.crm]\n{text}"
        );
        Job::parse(Path::new("job.toml"), &job).map(|job| job.destinations["crm"].breaker)
    };
    let defaults = BreakerSpec {
        failures: 5,
        failure_rate: None,
        open: Duration::from_secs(5 * 60),
        probe_interval: Duration::from_secs(2 * 60),
    };
    for text in ["", "breaker = true", "breaker = {}", "breaker = { failures = 5, open = 'PT5M' }"] {
        assert_eq!(breaker(text), Ok(Some(defaults)), "{text}");
    }
    assert_eq!(breaker("breaker = false"), Ok(None));
    let short = BreakerSpec {
        failures: 2,
        failure_rate: None,
        open: Duration::from_secs(1),
        probe_interval: Duration::from_secs(3),
    };
    assert_eq!(breaker("breaker = { failures = 2, open = '1s', probe_interval = '3s' }"), Ok(Some(short)));
    let rate =
        FailureRate { share: 0.5, window: Duration::from_secs(60), minimum_calls: 20, slow_call: None };
    for (text, expected) in [
        (
            "breaker = { failure_rate = 0.5 }",
            BreakerSpec { failures: 20, failure_rate: Some(rate), ..defaults },
        ),
        (
            "breaker = { failures = 7, failure_rate = '50%', window = '5s', minimum_calls = 9, slow_call = '2s' }",
            BreakerSpec {
                failures: 7,
                failure_rate: Some(FailureRate {
                    window: Duration::from_secs(5),
                    minimum_calls: 9,
                    slow_call: Some(Duration::from_secs(2)),
                    ..rate
                }),
                ..defaults
            },
        ),
    ] {
        assert_eq!(breaker(text), Ok(Some(expected)), "{text}");
    }
    for (text, told) in [
        ("breaker = { failure_rate = 1.01 }", "`failure_rate` must be a share above 0 and at most 1"),
        ("breaker = { failure_rate = 0 }", "`failure_rate` must be a share above 0 and at most 1"),
        ("breaker = { failure_rate = 'half' }", "`failure_rate` must be a share above 0 and at most 1"),
        ("breaker = { failure_rate = 1, window = '1ms' }", "`window` must be at least 1s"),
        ("breaker = { window = '1m' }", "`window` means nothing without `failure_rate`; add it"),
        ("breaker = { slow_call = '1s' }", "`slow_call` means nothing without `failure_rate`; add it"),
        ("breaker = { failures = 0 }", "`failures` must be a whole number from 1 to 100000"),
        ("breaker = { open = '0s' }", "`open` must be at least"),
        ("breaker = 5", "`breaker` must be a table, not an integer"),
        ("breaker = { failure = 5 }", "unknown key `failure` in `breaker`"),
    ] {
        let problems = breaker(text).unwrap_err().to_string();
        assert!(problems.contains(&format!("job.toml:8: {told}")), "{problems}");
    }
}

#[test]
fn items_and_runs_have_all_the_time_there_is_unless_the_job_says_otherwise() {
    let limits = |top: &str, source: &str| {
        let source = format!("[source]\ntype = 'jsonl'\npath = 'a'\n{source}");
        let text = format!("name = 'a'\n{top}{source}[[stage]]\ntype = 'echo'\n");
        let job = parse(Path::new("job.toml"), &text).map_err(|problems| problems.to_string())?;
        Ok::<_, String>((job.deadline, job.sources[0].expires_after))
    };
    let seconds = |count| Some(Duration::from_secs(count));
    assert_eq!(limits("", ""), Ok((None, None)));
    assert_eq!(limits("deadline = 'PT2H'\n", "expires_after = '90s'\n"), Ok((seconds(7_200), seconds(90))));
    for (top, source, told) in [
        ("deadline = '1ms'\n", "", "`deadline` must be at least 1s"),
        ("deadline = 60\n", "", "`deadline` must be a duration such as"),
        ("", "expires_after = '0s'\n", "`expires_after` must be at least 1s"),
        ("", "deadline = '1h'\n", "it belongs in the top of the file"),
    ] {
        let found = limits(top, source).unwrap_err();
        assert!(found.contains(told), "{found}");
    }
}

#[test]
fn concurrency_is_a_number_or_adapts_within_bounds() {
    let concurrency = |value: &str| {
        let text = file(&format!("[[stage]]\ntype = 'echo'\nconcurrency = {value}\n"));
        parse(Path::new("job.toml"), &text)
            .map(|job| job.stages[0].concurrency)
            .map_err(|found| found.to_string())
    };
    let auto = |least, most| Ok(Concurrency::Auto(Bounds { least, most }));
    assert_eq!(concurrency("7"), Ok(Concurrency::Fixed(7)));
    assert_eq!(concurrency("'auto'"), auto(1, 64));
    assert_eq!(concurrency("{ most = 200 }"), auto(1, 200));
    assert_eq!(concurrency("{ least = 8, most = 8 }"), auto(8, 8));
    for (value, told) in [
        ("'many'", "`concurrency` can't be \"many\"; write a number, \"auto\", or bounds"),
        ("{ least = 65 }", "`concurrency`: `least` (65) is over `most` (64)"),
        ("{ most = 0 }", "`most` must be a whole number from 1 to 10000"),
        ("{ max = 5 }", "unknown key `max` in `concurrency`"),
        ("0", "`concurrency` must be a whole number from 1 to 10000"),
    ] {
        let found = concurrency(value).unwrap_err();
        assert!(found.contains(told), "{found}");
    }
}
