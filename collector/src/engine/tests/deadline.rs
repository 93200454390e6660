//! Runs that have only so much time.

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

/// A world whose job gives a run an hour.
async fn world() -> World {
    let mut world = World::new(INPUT, "").await;
    world.job.deadline = Some(HOUR);
    world.restart().await;
    world
}

#[tokio::test]
async fn a_run_that_has_not_ended_at_its_deadline_is_stopped_and_its_open_items_cancelled() {
    let mut world = world().await;
    world.step(&[world.opened("r1"), progress("r1", 3), whole("r1", 0)]).await;
    let effects = world.tick(HOUR.saturating_sub(Duration::from_secs(1))).await;
    assert!(!effects.news.last().unwrap().stopping);
    assert!(effects.wake_in.unwrap() <= Duration::from_secs(1), "it wakes for the deadline: {effects:?}");
    // The deadline was frozen at the opening: a job file that gives more time changes nothing.
    world.job.deadline = None;
    world.restart().await;
    let effects = world.tick(Duration::from_secs(1)).await;
    assert!(effects.news.last().unwrap().stopping, "{effects:?}");
    world.step(&[sealed("r1", 4)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.accepted, report.open), (RunState::Failed, 40, 0));
    assert_eq!((report.outcomes.succeeded, report.outcomes.cancelled), (10, 30));
    assert_eq!(report.balance_error, None);
    assert!(report.stop_reason.unwrap().contains("`deadline`"));
    assert_eq!(world.output().lines().count(), 40, "every item has its line");
}

#[tokio::test]
async fn a_run_that_ends_in_time_is_left_alone_by_its_deadline() {
    let mut world = world().await;
    world.step(&[world.opened("r1"), whole("r1", 0)]).await;
    world.pass(HOUR);
    world.step(&[sealed("r1", 1)]).await;
    let report = world.report("r1");
    assert_eq!(
        (report.state, report.stop_reason),
        (RunState::Completed, None),
        "it had all but the seal in time"
    );
}
