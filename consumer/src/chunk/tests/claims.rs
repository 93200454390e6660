//! Chunks of a stage whose effect must not repeat.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::Semaphore as Gate;
use windrow_common::envelope::completion::Question;
use windrow_common::ids::Claimant;
use windrow_common::ranges::Ranges;

use super::*;

const ONCE: Settings = Settings { effect: Effect::AtMostOnce, ..USUAL };

/// What a delivery said in all.
#[derive(Debug, Default)]
struct Said {
    ends: BTreeMap<u64, Outcome>,
    handed_over: BTreeSet<u64>,
    released: BTreeSet<u64>,
    claimants: BTreeSet<Claimant>,
}

impl Said {
    fn take(&mut self, outcomes: &Outcomes) {
        self.ends.extend(outcomes.items.iter().zip(outcomes.outcomes.iter()));
        self.handed_over.extend(outcomes.handed_over.iter());
        self.released.extend(outcomes.released.iter());
        self.claimants.extend(outcomes.claimant.clone());
    }

    fn ended(&self, outcome: Outcome) -> Vec<u64> {
        self.ends.iter().filter(|(_, end)| **end == outcome).map(|(index, _)| *index).collect()
    }
}

/// The items to run, and those somebody else has claimed.
type Told = (Ranges, Option<Ranges>);

fn granted(question: &Question) -> Told {
    (question.items.clone(), Some(Ranges::new()))
}

impl Bench {
    /// Handles the next delivery, with `collector` answering its questions.
    async fn handle_asking(&mut self, collector: impl FnMut(&Question) -> Told) -> Said {
        self.handle_asking_losing(collector, drop).await
    }

    /// The same; `losing` is given what has it lost.
    async fn handle_asking_losing(
        &mut self,
        mut collector: impl FnMut(&Question) -> Told,
        losing: impl FnOnce(CancellationToken),
    ) -> Said {
        let delivery = self.work.next().await.unwrap();
        losing(delivery.lost.clone());
        let handling = handle(&self.intake, delivery);
        tokio::pin!(handling);
        let (mut said, mut is_handled) = (Said::default(), false);
        loop {
            let depth = self.broker.depth(&Queue::Completion).await.unwrap();
            if is_handled && depth.ready + depth.unsettled == 0 {
                return said;
            }
            let delivery = tokio::select! {
                () = &mut handling, if !is_handled => {
                    is_handled = true;
                    continue;
                }
                delivery = self.completions.next() => delivery.unwrap(),
            };
            let answer = match Completion::from_message(&delivery.message).unwrap() {
                Completion::Outcomes(outcomes) => {
                    said.take(&outcomes);
                    None
                }
                Completion::Question(question) => Some((collector(&question), question)),
                other => panic!("{other:?}"),
            };
            let answer = answer.map(|((run, claimed), question)| {
                let (token, run_items) = (question.token, run.to_string());
                let answer = Answer { token, run_items, busy_items: String::new(), claimed };
                let message = Control::Answer(answer).to_message();
                Outgoing { target: Target::Process(question.reply_to), message }
            });
            self.broker.settle(delivery, answer.into_iter().collect()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_came_back_too_often_is_not_taken_apart_while_somebody_has_claimed_items_of_it() {
    let mut bench = Bench::new(ONCE, |item| succeeded(&item)).await;
    bench.publish(&ChunkHeader { hop: 2, returns: 3, ..header(3) }).await;
    let one: Ranges = "1".parse().unwrap();
    let said =
        bench.handle_asking(|question| (question.items.filter(|index| index != 1), Some(one.clone()))).await;
    assert_eq!((said.ends.len(), said.handed_over.len()), (0, 0), "all of it waits");
    // The claim has run out.
    let said = bench
        .handle_asking(|question| (question.items.filter(|index| index != 1), Some(Ranges::new())))
        .await;
    assert_eq!((said.ends.len(), said.handed_over), (0, [0, 2].into()));
    let depth = bench.broker.depth(&Queue::Alone(bench.intake.key.clone())).await.unwrap();
    assert_eq!(depth.ready, 1);
}

#[tokio::test]
async fn a_call_is_made_only_under_a_claim() {
    let called = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&called);
    let mut bench = Bench::new(ONCE, move |item| {
        log.lock().unwrap().push(item.index);
        succeeded(&item)
    })
    .await;
    bench.publish(&header(9)).await;
    let mut asked = Vec::new();
    let said = bench
        .handle_asking(|question| {
            let claim = question.claim.as_ref().unwrap();
            assert_eq!((claim.holds_ms, claim.attempts.len()), (90_000, question.items.len()));
            asked.push((claim.claimant.clone(), question.items.len()));
            // The first third may be called, the second is with somebody else, the last has settled.
            (
                question.items.filter(|index| index < 3),
                Some(question.items.filter(|index| (3..6).contains(&index))),
            )
        })
        .await;
    assert_eq!(*called.lock().unwrap(), [0, 1, 2]);
    assert_eq!(said.ended(Outcome::Succeeded), [0, 1, 2]);
    assert_eq!(said.handed_over, BTreeSet::from([3, 4, 5]), "they wait for who has claimed them");
    let claimants: BTreeSet<Claimant> = asked.iter().map(|(claimant, _)| claimant.clone()).collect();
    assert_eq!((claimants.len(), &said.claimants), (1, &claimants), "one delivery is one claimant");
    assert_eq!(asked[0].1, 4, "as many as there are slots, with one question: {asked:?}");
    let (remainder, _) = bench.next_chunk().await;
    assert_eq!((remainder.items.to_string(), remainder.holds.to_string()), ("3-5".into(), "1*3".into()));
    bench.assert_settled().await;
}

#[tokio::test]
async fn what_may_have_been_done_ends_as_unknown_and_what_was_not_is_claimed_again() {
    let settings = Settings { timeout: Duration::from_millis(200), ..ONCE };
    let calls = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&calls);
    let mut bench = Bench::new(settings, move |item| {
        log.lock().unwrap().push((item.index, item.attempt));
        let no_connection = Attempt::failed("connect", "refused", Retry::Later).nothing_done();
        match (item.index, item.attempt) {
            (0, _) => pending().boxed(),
            (1, _) => failed(Retry::Later),
            (2, _) => async { panic!("in the middle of it") }.boxed(),
            (3, 1 | 2) => async { no_connection }.boxed(),
            (4, _) => async { Attempt::failed("http_status", "404", Retry::Never).nothing_done() }.boxed(),
            _ => succeeded(&item),
        }
    })
    .await;
    bench.publish(&header(6)).await;
    let mut attempts = Vec::new();
    let said = bench
        .handle_asking(|question| {
            let claim = question.claim.as_ref().unwrap();
            attempts.extend(question.items.iter().zip(claim.attempts.iter()));
            granted(question)
        })
        .await;
    assert_eq!(said.ended(Outcome::Unknown), [0, 1, 2]);
    assert_eq!((said.ended(Outcome::Succeeded), said.ended(Outcome::Failed)), (vec![3, 5], vec![4]));
    let mut calls = std::mem::take(&mut *calls.lock().unwrap());
    calls.sort_unstable();
    assert_eq!(calls, [(0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (4, 1), (5, 1)]);
    attempts.sort_unstable();
    assert_eq!(attempts, calls, "a claim for each call");
    assert_eq!((said.handed_over, said.released), (BTreeSet::new(), BTreeSet::new()));
}

#[tokio::test]
async fn what_waits_for_a_retry_gives_up_its_claim() {
    let settings = Settings { interval: Duration::from_secs(30), ..ONCE };
    let mut bench = Bench::new(settings, |item| match item.index {
        1 => async { Attempt::failed("connect", "refused", Retry::Later).nothing_done() }.boxed(),
        _ => succeeded(&item),
    })
    .await;
    bench.publish(&header(3)).await;
    let said = bench.handle_asking(granted).await;
    assert_eq!((said.handed_over, said.released), (BTreeSet::from([1]), BTreeSet::from([1])));
    assert_eq!(said.ends.len(), 2);
}

#[tokio::test]
async fn a_call_dropped_at_the_end_of_the_grace_is_unknown_and_what_had_not_begun_goes_on() {
    let begun = Arc::new(Gate::new(0));
    let count = Arc::clone(&begun);
    let mut bench = Bench::new(ONCE, move |_| {
        count.add_permits(1);
        pending().boxed()
    })
    .await;
    bench.publish(&header(6)).await;
    let (draining, abort) = (bench.intake.draining.clone(), bench.intake.abort.clone());
    let ending = tokio::spawn(async move {
        begun.acquire_many(4).await.unwrap().forget();
        draining.cancel();
        abort.cancel();
    });
    let said = bench.handle_asking(granted).await;
    ending.await.unwrap();
    assert_eq!(said.ended(Outcome::Unknown), [0, 1, 2, 3]);
    assert_eq!(said.handed_over, BTreeSet::from([4, 5]));
    assert_eq!(bench.next_chunk().await.0.attempts.to_string(), "0*2");
}

#[tokio::test]
async fn a_lost_delivery_gives_up_what_it_has_not_sent_and_hands_nothing_over() {
    let losing = Arc::new(Mutex::new(CancellationToken::new()));
    let loses = Arc::clone(&losing);
    let settings = Settings { interval: Duration::from_secs(1), ..ONCE };
    let mut bench = Bench::new(settings, move |item| {
        assert_eq!(item.attempt, 1, "a lost delivery starts nothing");
        loses.lock().unwrap().cancel();
        async { Attempt::failed("connect", "refused", Retry::Later).nothing_done() }.boxed()
    })
    .await;
    bench.publish(&header(2)).await;
    let said = bench.handle_asking_losing(granted, |lost| *losing.lock().unwrap() = lost).await;
    assert_eq!((said.released, said.handed_over), (BTreeSet::from([0, 1]), BTreeSet::new()));
}

#[tokio::test]
async fn a_collector_that_says_nothing_of_claims_grants_nothing() {
    let mut bench = Bench::new(ONCE, |_| panic!("nothing of it may run")).await;
    bench.publish(&header(2)).await;
    let said = bench.handle_asking(|question| (question.items.clone(), None)).await;
    assert_eq!((said.handed_over, said.ends.len()), (BTreeSet::from([0, 1]), 0));
    assert_eq!(said.released, BTreeSet::from([0, 1]), "it may have granted them all the same");
    bench.publish(&ChunkHeader { resent: true, held_ms: 600_000, ..header(2) }).await;
    let said = bench.handle_asking(|question| (question.items.clone(), None)).await;
    assert!(said.ends.is_empty() && said.handed_over.is_empty(), "a copy is held: {said:?}");
}

#[tokio::test]
async fn a_copy_waits_for_what_somebody_else_has_claimed() {
    let mut bench = Bench::new(ONCE, |item| succeeded(&item)).await;
    bench.publish(&ChunkHeader { resent: true, ..header(5) }).await;
    let mut claims = 0;
    let said = bench
        .handle_asking(|question| {
            if question.claim.is_none() {
                return ("0,4".parse().unwrap(), Some("1-2".parse().unwrap()));
            }
            claims += question.items.len();
            granted(question)
        })
        .await;
    assert_eq!((said.ended(Outcome::Succeeded), claims), (vec![0, 4], 2));
    assert_eq!(said.handed_over, BTreeSet::from([1, 2]), "3 has settled");
}
