//! Claims: granted once, ended by an outcome or by their claimant's word, and unknown when neither comes.

use windrow_common::envelope::completion::{Claim, Overdue};
use windrow_common::ids::Claimant;

use super::*;
use crate::ledger::FailureRow;

const HOLDS_MS: u64 = 30_000;

fn asking(hop: u32, items: &str, claim: Option<Claim>) -> Completion {
    Completion::Question(Question {
        id: chunk_id("r1", 0),
        span: span(0),
        hop,
        items: items.parse().unwrap(),
        reply_to: ProcessId::generate(),
        token: "t".into(),
        claim,
    })
}

fn claiming(by: &str, hop: u32, items: &str) -> Completion {
    let asked: Ranges = items.parse().unwrap();
    let ids = asked.iter().map(|index| if index == 0 { String::new() } else { format!("id-{index}") });
    let claim = Claim {
        claimant: by.parse().unwrap(),
        holds_ms: HOLDS_MS,
        attempts: Runs::repeat(hop + 1, asked.len()),
        ids: Some(ids.collect()),
    };
    asking(hop, items, Some(claim))
}

/// What the only question was answered: the items to run, and those somebody else has claimed.
fn answered(effects: &Effects) -> (&str, String) {
    let [(_, answer)] = effects.answers.as_slice() else { panic!("{:?}", effects.answers) };
    (&answer.run_items, answer.claimed.as_ref().unwrap().to_string())
}

fn by(claimant: &str, outcomes: Outcomes) -> Completion {
    Completion::Outcomes(Outcomes { claimant: Some(claimant.parse::<Claimant>().unwrap()), ..outcomes })
}

fn failures(world: &World) -> Vec<FailureRow> {
    Reader::open(&world.data_dir()).unwrap().failures(&"r1".parse().unwrap(), None, 99).unwrap()
}

#[tokio::test]
async fn a_claim_is_granted_to_the_first_who_asks_and_outlives_the_collector() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1")]).await;
    assert_eq!(answered(&world.step(&[claiming("a", 0, "0-3")]).await), ("0-3", String::new()));
    assert_eq!(answered(&world.step(&[claiming("b", 0, "2-5")]).await), ("4-5", "2-3".into()));
    world.restart().await;
    assert_eq!(answered(&world.step(&[claiming("a", 0, "0-3")]).await), ("0-3", String::new()), "idempotent");
    assert_eq!(answered(&world.step(&[claiming("b", 0, "0-5")]).await), ("4-5", "0-3".into()));
    assert_eq!(answered(&world.step(&[asking(1, "0-9", None)]).await), ("6-9", "0-5".into()), "a copy asks");

    let mut part = outcomes("r1", 0, "0-1", Outcome::Succeeded);
    part.released = "3-5".parse().unwrap();
    part.hop = 1;
    world.step(&[by("a", part)]).await;
    let (granted, claimed) = ("3", "2,4-5".to_owned());
    assert_eq!(
        answered(&world.step(&[claiming("c", 1, "0-5")]).await),
        (granted, claimed),
        "b keeps its own"
    );
}

#[tokio::test]
async fn what_nobody_speaks_of_in_time_ends_as_unknown_but_not_before_all_that_was_sent_is_read() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), claiming("a", 0, "0-3"), claiming("b", 0, "4-9")]).await;
    let effects = world.tick(Duration::from_millis(HOLDS_MS - 1)).await;
    assert_eq!(effects.overdue, None);
    assert!(effects.wake_in.unwrap() <= Duration::from_millis(1), "{:?}", effects.wake_in);
    world.restart().await;
    let at = world.tick(Duration::from_millis(1)).await.overdue.unwrap();
    assert_eq!(world.report("r1").outcomes.unknown, 0, "the word is only on its way");

    // What a sent in time is in the queue before the word.
    let overdue = Completion::Overdue(Overdue { at });
    let late = by("a", outcomes("r1", 0, "0-2", Outcome::Succeeded));
    world.step(&[late, overdue, word_of_the_future(), sealed("r1", 1)]).await;
    let report = world.report("r1");
    assert_eq!((report.outcomes.succeeded, report.outcomes.unknown, report.open), (3, 7, 0));
    assert_eq!((report.state, report.balance_error), (RunState::CompletedWithFailures, None));
    let rows = failures(&world);
    let known: Vec<_> =
        rows.iter().map(|row| (row.index, row.outcome, row.id.clone(), row.attempts)).collect();
    let expected: Vec<_> = (3..10).map(|i| (i, Outcome::Unknown, Some(format!("id-{i}")), 1)).collect();
    assert_eq!(known, expected);
    assert!(rows[0].error.get().contains("claim_expired"));
    assert!(world.output().contains(r#""item":3,"id":"id-3","outcome":"unknown""#), "{}", world.output());

    // Whoever comes now finds it settled, and is late.
    assert_eq!(answered(&world.step(&[claiming("c", 5, "0-9")]).await), ("", String::new()));
    world.step(&[by("b", outcomes("r1", 0, "4-9", Outcome::Succeeded))]).await;
    assert_eq!((world.report("r1").conflicts, world.report("r1").outcomes.unknown), (6, 7));
}

/// A wrong clock ends no claim early.
fn word_of_the_future() -> Completion {
    Completion::Overdue(Overdue { at: u64::MAX })
}

#[tokio::test]
async fn who_goes_on_claiming_is_there_and_its_claims_hold() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), claiming("a", 0, "0")]).await;
    world.pass(Duration::from_millis(HOLDS_MS - 1));
    world.step(&[claiming("a", 0, "1"), word_of_the_future()]).await;
    assert_eq!(world.tick(Duration::from_secs(1)).await.overdue, None);
    assert_eq!(answered(&world.step(&[claiming("b", 0, "0-1")]).await), ("", "0-1".into()));
}

#[tokio::test]
async fn a_claim_that_is_given_up_before_it_is_answered_is_nobodys() {
    let mut world = World::new(INPUT, "").await;
    let mut last = outcomes("r1", 0, "0", Outcome::Succeeded);
    last.released = "1".parse().unwrap();
    let effects = world.step(&[world.opened("r1"), claiming("a", 0, "0-2"), by("a", last)]).await;
    assert_eq!(answered(&effects), ("2", String::new()));
    assert_eq!(answered(&world.step(&[claiming("b", 0, "0-2")]).await), ("1", "2".into()));
}

#[tokio::test]
async fn only_the_claimant_says_how_a_claimed_item_ended() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), claiming("a", 0, "2-3")]).await;
    // Of a copy whose run was stopped.
    world.step(&[Completion::Outcomes(outcomes("r1", 0, "1-2", Outcome::Cancelled))]).await;
    let report = world.report("r1");
    assert_eq!((report.outcomes.cancelled, report.outcomes.unknown), (1, 1));
    assert_eq!(failures(&world)[1].index, 2);
    assert!(failures(&world)[1].error.get().contains("under way elsewhere"));
}

#[tokio::test]
async fn a_cut_run_ends_calls_under_way_as_unknown_and_the_rest_as_cancelled() {
    let mut world = World::new(INPUT, "[tolerate]\nfailed = 0").await;
    world.step(&[world.opened("r1"), claiming("a", 0, "2-3"), claiming("b", 0, "9")]).await;
    world.step(&[Completion::Outcomes(outcomes("r1", 0, "5", Outcome::Failed)), sealed("r1", 1)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.balance_error), (RunState::Failed, None));
    let counts = report.outcomes;
    assert_eq!((counts.failed, counts.unknown, counts.cancelled), (1, 3, 6));
    let lines = world.output().lines().filter(|line| line.contains(r#""outcome":"unknown""#)).count();
    assert_eq!((lines, world.output().lines().count()), (3, 10));
    assert_eq!(world.tick(Duration::from_secs(60)).await.overdue, None);
}
