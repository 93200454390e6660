//! What every processor keeps to, and the stage around it. The fixtures serve the tests beside this file too.

use std::time::Duration;

use futures::future::join_all;
use windrow_common::job::{Concurrency, DestinationSpec, Effect, RetrySpec, Schedule};

use super::*;

/// An item of the run `r1` (first run as `r0`), at index 17, at its first attempt.
pub(super) fn item(raw: &str) -> Item {
    let context = StageContext {
        run: "r1".parse().unwrap(),
        root_run: "r0".parse().unwrap(),
        job: "sync".parse().unwrap(),
        stage: "push".parse().unwrap(),
        source: "main".parse().unwrap(),
    };
    Item { raw: Bytes::copy_from_slice(raw.as_bytes()), index: 17, attempt: 1, context: Arc::new(context) }
}

pub(super) fn stage_spec(processor: ProcessorSpec) -> StageSpec {
    StageSpec {
        name: "push".parse().unwrap(),
        processor,
        destination: None,
        concurrency: Concurrency::Fixed(4),
        timeout: Duration::from_secs(600),
        retry: RetrySpec {
            count: 3,
            interval: Duration::from_secs(30),
            schedule: Schedule::Exponential,
            max_interval: Duration::from_secs(900),
            in_place_below: Duration::from_secs(2),
        },
        when: None,
        skip_when: None,
        effect: Effect::AtLeastOnce,
    }
}

/// An environment with one secret, and what a program needs.
pub(super) fn env(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("s3cret-t0ken".to_owned()),
        "PATH" => std::env::var(name).ok(),
        "HOME" => Some("/nonexistent".to_owned()),
        _ => None,
    }
}

pub(super) fn build(spec: &StageSpec) -> Stage {
    Stage::build(spec, &Destinations::default(), &env).unwrap()
}

/// The output of an attempt that must have succeeded.
pub(super) fn output(attempt: Attempt) -> String {
    match attempt {
        Attempt::Succeeded(output) => String::from_utf8(output.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The error of an attempt that must have failed, and whether it may be tried again.
pub(super) fn failure(attempt: Attempt) -> (ItemError, Retry) {
    match attempt {
        Attempt::Failed { error, retry, .. } => (error, retry),
        other => panic!("{other:?}"),
    }
}

fn jq(filter: &str) -> StageSpec {
    stage_spec(ProcessorSpec::Jq { filter: filter.to_owned() })
}

#[tokio::test]
async fn echo_gives_the_same_bytes_back_at_its_first_poll() {
    let item = item(r#"{"a": 1.50}"#);
    let stage = build(&stage_spec(ProcessorSpec::Echo));
    let Some(Attempt::Succeeded(output)) = futures::FutureExt::now_or_never(stage.processor().process(&item))
    else {
        panic!("echo did not answer at once")
    };
    assert_eq!(output.as_ptr(), item.raw.as_ptr());
}

#[tokio::test]
async fn jq_gives_its_one_output_and_never_retries_an_error() {
    let stage = build(&jq("{id, twice: (.n * 2)}"));
    assert_eq!(
        output(stage.processor().process(&item(r#"{"id":"a","n":21}"#)).await),
        r#"{"id":"a","twice":42}"#
    );
    for filter in [".[]", "empty", "error(\"no\")"] {
        let (error, retry) = failure(build(&jq(filter)).processor().process(&item("[1,2]")).await);
        assert_eq!((error.class.as_str(), retry), ("jq", Retry::Never), "{filter}");
    }
}

#[tokio::test]
async fn jq_keeps_the_stages_timeout_by_itself() {
    let spec = StageSpec { timeout: Duration::from_millis(20), ..jq("def f: f; f") };
    let (error, _) = failure(build(&spec).processor().process(&item("1")).await);
    assert!(error.message.contains("in time"), "{}", error.message);
}

#[test]
fn an_item_for_which_when_is_false_or_null_passes_by_as_it_is() {
    let spec = StageSpec { when: Some(".active".to_owned()), ..jq("1") };
    let stage = build(&spec);
    for raw in [r#"{"active":false}"#, r#"{"active":null}"#, "{}"] {
        assert_eq!(output(stage.decide(&item(raw)).unwrap()), raw);
    }
    assert_eq!(stage.decide(&item(r#"{"active":0}"#)), None);
}

#[test]
fn an_item_for_which_skip_when_is_true_is_skipped_unless_it_passes_by() {
    let (when, skip_when) = (Some(".n > 0".to_owned()), Some(".n != 5".to_owned()));
    let stage = build(&StageSpec { when, skip_when, ..jq("1") });
    assert_eq!(output(stage.decide(&item(r#"{"n":-1}"#)).unwrap()), r#"{"n":-1}"#);
    let Some(Attempt::Skipped(error)) = stage.decide(&item(r#"{"n":1}"#)) else { panic!() };
    assert_eq!(error.class, "skip_when");
    assert_eq!(stage.decide(&item(r#"{"n":5}"#)), None);
}

#[test]
fn a_condition_that_cannot_be_judged_fails_the_item() {
    for (when, skip_when) in [(Some(".a.b"), None), (None, Some(".a.b"))] {
        let (when, skip_when) = (when.map(str::to_owned), skip_when.map(str::to_owned));
        let stage = build(&StageSpec { when, skip_when, ..jq("1") });
        let (error, retry) = failure(stage.decide(&item(r#"{"a":1}"#)).unwrap());
        assert!(error.message.starts_with(&format!("`{}`", error.class)), "{error:?}");
        assert_eq!(retry, Retry::Never);
    }
}

#[test]
fn a_stage_that_cannot_be_made_ready_says_what_to_do() {
    let build =
        |spec: &StageSpec| Stage::build(spec, &Destinations::default(), &env).unwrap_err().to_string();
    let spec = StageSpec { destination: Some("crm".to_owned()), ..jq(".") };
    assert!(build(&spec).starts_with("stage `push`: there is no [destination.crm]"), "{}", build(&spec));
    assert!(build(&jq("{")).starts_with("stage `push`: `filter`: "), "{}", build(&jq("{")));
    let spec = StageSpec { when: Some("nosuch".to_owned()), ..jq(".") };
    assert!(build(&spec).starts_with("stage `push`: `when`: "), "{}", build(&spec));
}

#[tokio::test]
async fn a_destination_has_as_many_permits_as_the_smallest_limit_any_job_gives_it() {
    let job = |connections| {
        let text = "name = 'j'\n[source]\ntype = 'json'\npath = '-'\n[[stage]]\ntype = 'echo'\n";
        let mut job = windrow_common::job::Job::parse(std::path::Path::new("j.toml"), text).unwrap();
        job.destinations.insert(
            "crm".to_owned(),
            DestinationSpec {
                max_connections: connections,
                rates: Vec::new(),
                rate_floor: None,
                throttle: windrow_common::job::ThrottleScope::Destination,
                breaker: None,
            },
        );
        job
    };
    let destinations = Destinations::of_jobs(&[job(5), job(2), job(7)]);
    let spec = StageSpec { destination: Some("crm".to_owned()), ..jq(".") };
    let stages = [(); 2].map(|()| Stage::build(&spec, &destinations, &env).unwrap());
    let (first, _second) = (stages[0].permit().await.unwrap().unwrap(), stages[1].permit().await.unwrap());
    let third = stages[0].permit();
    let mut third = std::pin::pin!(third);
    assert!(futures::poll!(&mut third).is_pending());
    drop(first);
    assert!(third.await.is_ok());
}

#[tokio::test]
async fn stages_that_share_a_destination_share_its_breaker_and_its_calls_are_shown() {
    use windrow_common::job::Job;
    use windrow_common::telemetry::metrics::Metrics;

    let text = "name = 'j'\n[source]\ntype = 'json'\npath = '-'\n[[stage]]\ntype = 'echo'\n\
                [destination.crm]\nbreaker = { failures = 2 }\n[destination.shop]\nbreaker = { failures = 2 }\n";
    let job = Job::parse(std::path::Path::new("j.toml"), text).unwrap();
    let destinations = Destinations::of_jobs([&job]);
    let metrics = Metrics::new("test");
    destinations.show_in(&metrics);
    let stage = |destination: &str| {
        let spec = StageSpec { destination: Some(destination.to_owned()), ..jq(".") };
        Stage::build(&spec, &destinations, &env).unwrap()
    };
    let stages = [stage("crm"), stage("crm")];
    let in_flight = || metrics.calls_in_flight("crm").get();
    for (number, stage) in stages.iter().enumerate() {
        let mut permit = stage.permit().await.unwrap().unwrap();
        let other = stage.permit().await.unwrap();
        assert_eq!(in_flight(), 2, "call {number}");
        permit.note(&Attempt::failed("connect", "", Retry::Later));
        drop((permit, other));
        assert_eq!(in_flight(), 0, "call {number}");
    }
    for stage in &stages {
        assert!(stage.permit().await.is_err(), "a failure of each has opened the breaker of both");
    }
    assert!(stage("shop").permit().await.is_ok(), "another destination has a breaker of its own");
}

#[tokio::test]
async fn a_refused_call_pauses_its_destination_unless_it_concerns_its_item_alone() {
    use windrow_common::job::Job;

    let text = "name = 'j'\n[source]\ntype = 'json'\npath = '-'\n[[stage]]\ntype = 'echo'\n\
                [destination.crm]\n[destination.shop]\nthrottle = 'item'\n";
    let job = Job::parse(std::path::Path::new("j.toml"), text).unwrap();
    let destinations = Destinations::of_jobs([&job]);
    let stage = |destination: &str| {
        let spec = StageSpec { destination: Some(destination.to_owned()), ..jq(".") };
        Stage::build(&spec, &destinations, &env).unwrap()
    };
    let refuse = async |stage: &Stage, after: Duration| {
        let error = ItemError { class: "http_status".into(), message: String::new(), status: Some(429) };
        let mut permit = stage.permit().await.unwrap().unwrap();
        permit.note(&Attempt::Throttled { error, after: Some(after) });
    };
    let (crm, shop) = (stage("crm"), stage("shop"));
    let began = std::time::Instant::now();
    let pause = Duration::from_millis(300);
    refuse(&crm, pause).await;
    drop(crm.permit().await.unwrap());
    assert!(began.elapsed() >= pause, "a short pause is waited for here");
    refuse(&crm, Duration::from_secs(60)).await;
    let outage = crm.permit().await.unwrap_err();
    assert!(outage.until > began + Duration::from_secs(59), "a long one elsewhere");
    refuse(&shop, Duration::from_secs(60)).await;
    assert!(shop.permit().await.is_ok(), "another item is not concerned");
}

#[tokio::test]
async fn a_stage_without_a_destination_needs_no_permit() {
    assert!(build(&jq(".")).permit().await.unwrap().is_none());
}

#[tokio::test]
async fn a_thousand_items_at_once_see_nothing_of_each_other() {
    let stage = build(&jq("{own: .n}"));
    let check = |n: u64| {
        let stage = &stage;
        async move {
            let item = item(&format!("{{\"n\":{n}}}"));
            assert_eq!(output(stage.processor().process(&item).await), format!("{{\"own\":{n}}}"));
        }
    };
    join_all((0..1_000).map(check)).await;
}

/// What `windrow check` shows, with variables by their names.
#[test]
fn a_description_says_what_would_be_done_and_shows_no_secret() {
    use windrow_common::job::Job;

    let text = r#"
name = "sync"
[source]
type = "jsonl"
path = "items.jsonl"
[[stage]]
name = "push"
type = "http"
url = "https://crm.example/{{ item.id }}"
headers = { authorization = "Bearer ${CRM_TOKEN}" }
body = "{{ item | tojson }}"
when = ".active"
"#;
    let job = Job::parse(std::path::Path::new("job.toml"), text).unwrap();
    let by_name = |name: &str| Some(format!("${{{name}}}"));
    let stage = Stage::build(&job.stages[0], &Destinations::of_jobs([&job]), &by_name).unwrap();
    let describe = |raw: &'static str| {
        let context = StageContext {
            run: "r".parse().unwrap(),
            root_run: "r".parse().unwrap(),
            job: job.name.clone(),
            stage: job.stages[0].name.clone(),
            source: windrow_common::ids::SourceName::only(),
        };
        stage.describe(&Item { raw: raw.into(), index: 0, attempt: 1, context: context.into() })
    };
    let text = describe(r#"{"id":7,"active":true}"#).unwrap();
    assert!(text.starts_with("POST https://crm.example/7\n"), "{text}");
    assert!(text.contains("Bearer ${CRM_TOKEN}") && text.ends_with(r#"{"id": 7, "active": true}"#), "{text}");
    assert!(describe(r#"{"id":7,"active":false}"#).unwrap().starts_with("pass it by"));
    assert_eq!(describe(r#"{"active":true}"#).unwrap_err().class, "template");
}
