use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::broker::parking::Death;
use crate::broker::{Receipt, Target};
use crate::envelope::{Headers, Message};
use crate::ids::{ProcessId, StageKey};

fn stage() -> StageKey {
    StageKey { job: "sync".parse().unwrap(), stage: "push".parse().unwrap() }
}

fn work() -> Queue {
    Queue::Work(stage())
}

fn message(id: impl ToString + Copy) -> Message {
    let mut headers = Headers::new();
    headers.set_text("run", "r1");
    headers.set_int("hop", 2);
    Message {
        kind: "chunk".to_owned(),
        message_id: id.to_string(),
        reply_to: "p1".to_owned(),
        headers,
        content_encoding: String::new(),
        body: Bytes::from("{\"a\":1}\n"),
    }
}

fn to(target: Target, id: impl ToString + Copy) -> Outgoing {
    Outgoing { target, message: message(id) }
}

fn to_work(id: impl ToString + Copy) -> Outgoing {
    to(Target::Queue(work()), id)
}

async fn open(folder: &TempDir) -> EmbeddedBroker {
    let broker = EmbeddedBroker::open(folder.path(), &Group::main()).unwrap();
    for queue in [work(), Queue::Due(stage()), Queue::Completion] {
        broker.ensure(&queue).await.unwrap();
    }
    broker
}

/// The next delivery, which must come soon.
async fn next(subscription: &mut Subscription) -> Delivery {
    let delivery = tokio::time::timeout(Duration::from_secs(5), subscription.next()).await;
    delivery.expect("nothing came").expect("the subscription ended")
}

/// Waits until `broker` says `wanted` of itself.
async fn wait_for_health(broker: &EmbeddedBroker, wanted: impl Fn(&Health) -> bool) {
    let mut health = broker.health();
    let seen = tokio::time::timeout(Duration::from_secs(5), health.wait_for(|health| wanted(health))).await;
    assert!(seen.is_ok_and(|seen| seen.is_ok()), "{:?}", broker.health());
}

#[tokio::test]
async fn a_message_arrives_as_it_was_sent_and_is_gone_once_settled() {
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    for id in 0..3 {
        broker.publish(to_work(id)).await.unwrap();
    }
    let mut subscription = broker.subscribe(vec![work()], 10).await.unwrap();
    for id in 0..3 {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.message, message(id));
        assert_eq!((delivery.redelivered, delivery.delivery_count), (false, 0));
        assert_eq!(broker.settle(delivery, Vec::new()).await.unwrap(), Settlement::Done);
    }
    // Published with a reader waiting: it is leased in the same transaction.
    broker.publish(to_work("late")).await.unwrap();
    let late = next(&mut subscription).await;
    assert_eq!(broker.depth(&work()).await.unwrap(), Depth { ready: 0, unsettled: 1 });
    broker.settle(late, Vec::new()).await.unwrap();
    assert_eq!(broker.depth(&work()).await.unwrap(), Depth::default());
}

#[tokio::test]
async fn no_more_than_the_prefetch_is_delivered_until_something_is_settled() {
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    for id in 0..5 {
        broker.publish(to_work(id)).await.unwrap();
    }
    let mut subscription = broker.subscribe(vec![work()], 2).await.unwrap();
    let first = next(&mut subscription).await;
    let _second = next(&mut subscription).await;
    assert_eq!(broker.depth(&work()).await.unwrap(), Depth { ready: 3, unsettled: 2 });
    assert!(subscription.try_next().is_none());
    broker.settle(first, Vec::new()).await.unwrap();
    assert_eq!(next(&mut subscription).await.message.message_id, "2");
}

#[tokio::test]
async fn deliveries_a_dropped_subscription_did_not_take_go_back_as_new() {
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    for id in 0..4 {
        broker.publish(to_work(id)).await.unwrap();
    }
    let mut subscription = broker.subscribe(vec![work()], 4).await.unwrap();
    let taken = next(&mut subscription).await;
    drop(subscription);
    let mut subscription = broker.subscribe(vec![work()], 10).await.unwrap();
    for id in 1..4 {
        let delivery = next(&mut subscription).await;
        assert_eq!((delivery.message, delivery.redelivered), (message(id), false));
    }
    assert_eq!(broker.settle(taken, Vec::new()).await.unwrap(), Settlement::Done);
}

#[tokio::test]
async fn what_a_process_left_unsettled_comes_first_to_another() {
    let folder = TempDir::new().unwrap();
    let gone = open(&folder).await;
    for id in 0..4 {
        gone.publish(to_work(id)).await.unwrap();
    }
    let mut subscription = gone.subscribe(vec![work()], 2).await.unwrap();
    let held = [next(&mut subscription).await, next(&mut subscription).await];
    drop(gone);
    let broker = open(&folder).await;
    let mut subscription = broker.subscribe(vec![work()], 10).await.unwrap();
    for (id, redelivered) in [(0, true), (1, true), (2, false), (3, false)] {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.message, message(id));
        assert_eq!((delivery.redelivered, delivery.delivery_count), (redelivered, u32::from(redelivered)));
    }
    assert!(held.iter().all(|delivery| delivery.lost.is_cancelled()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_two_thousand_messages_and_double_none() {
    const COUNT: usize = 2_000;
    let folder = TempDir::new().unwrap();
    let (one, two) = (open(&folder).await, open(&folder).await);
    let publish = async {
        futures::future::try_join_all((0..COUNT).map(|id| one.publish(to_work(id)))).await.unwrap();
    };
    let (left, end) = (AtomicUsize::new(COUNT), CancellationToken::new());
    let ((), first, second) =
        tokio::join!(publish, settle_until(&end, &left, &one), settle_until(&end, &left, &two));
    assert!(!first.is_empty() && !second.is_empty(), "{} and {}", first.len(), second.len());
    let all: HashSet<&String> = first.iter().chain(&second).collect();
    assert_eq!((first.len() + second.len(), all.len()), (COUNT, COUNT));
    assert_eq!(one.depth(&work()).await.unwrap(), Depth::default());
}

/// Settles what comes until none are `left`, which ends all who do so; the ids of what came here.
async fn settle_until(end: &CancellationToken, left: &AtomicUsize, broker: &EmbeddedBroker) -> Vec<String> {
    let mut subscription = broker.subscribe(vec![work()], 20).await.unwrap();
    let mut seen = Vec::new();
    while let Some(delivery) = end.run_until_cancelled(subscription.next()).await.flatten() {
        seen.push(delivery.message.message_id.clone());
        assert_eq!(broker.settle(delivery, Vec::new()).await.unwrap(), Settlement::Done);
        if left.fetch_sub(1, Ordering::AcqRel) == 1 {
            end.cancel();
        }
    }
    seen
}

#[tokio::test]
async fn another_processs_message_is_seen_within_a_moment() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (open(&folder).await, open(&folder).await);
    let mut subscription = two.subscribe(vec![work()], 1).await.unwrap();
    let mut fastest = Duration::MAX;
    for id in 0..20 {
        one.publish(to_work(id)).await.unwrap();
        let published = Instant::now();
        let delivery = next(&mut subscription).await;
        fastest = fastest.min(published.elapsed());
        two.settle(delivery, Vec::new()).await.unwrap();
    }
    assert!(fastest < Duration::from_millis(30), "{fastest:?}");
}

#[tokio::test]
async fn a_delayed_message_comes_to_the_due_queue_when_it_is_due_and_not_before() {
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    let mut subscription = broker.subscribe(vec![Queue::Due(stage()), work()], 10).await.unwrap();
    let put_aside = Instant::now();
    let target = Target::Delay { delay: Duration::from_millis(300), stage: stage() };
    broker.publish(to(target, "later")).await.unwrap();
    assert_eq!(broker.depth(&Queue::Due(stage())).await.unwrap(), Depth::default());
    let delivery = next(&mut subscription).await;
    let waited = put_aside.elapsed();
    assert_eq!((delivery.message.message_id.as_str(), &delivery.queue), ("later", &Queue::Due(stage())));
    assert!((Duration::from_millis(999)..Duration::from_millis(2_500)).contains(&waited), "{waited:?}");
    assert!(!delivery.redelivered);
}

#[tokio::test]
async fn settling_sends_all_or_nothing() {
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    broker.publish(to_work(1)).await.unwrap();
    let mut subscription = broker.subscribe(vec![work()], 1).await.unwrap();
    let delivery = next(&mut subscription).await;
    let nowhere = Target::Queue(Queue::Held(stage()));
    let outgoing = vec![to(Target::Queue(Queue::Completion), "done"), to(nowhere, "lost")];
    let refused = broker.settle(delivery, outgoing).await;
    assert!(matches!(refused, Err(BrokerError::Unroutable(_))), "{refused:?}");
    assert_eq!(broker.depth(&Queue::Completion).await.unwrap(), Depth::default());
    assert_eq!(broker.depth(&work()).await.unwrap(), Depth { ready: 0, unsettled: 1 });
}

#[tokio::test]
async fn a_lost_delivery_sends_what_it_has_to_say_all_the_same() {
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    broker.publish(to_work(1)).await.unwrap();
    let mut subscription = broker.subscribe(vec![work()], 1).await.unwrap();
    let mut delivery = next(&mut subscription).await;
    delivery.receipt = Receipt { generation: u64::MAX >> 1, ..delivery.receipt };
    let outgoing = vec![to(Target::Queue(Queue::Completion), "done")];
    assert_eq!(broker.settle(delivery, outgoing).await.unwrap(), Settlement::Lost);
    assert_eq!(broker.depth(&Queue::Completion).await.unwrap(), Depth { ready: 1, unsettled: 0 });
    assert_eq!(broker.depth(&work()).await.unwrap(), Depth { ready: 0, unsettled: 1 });
}

#[tokio::test]
async fn a_process_whose_lock_file_was_removed_knows_its_deliveries_are_lost() {
    let folder = TempDir::new().unwrap();
    let robbed = open(&folder).await;
    let locks = std::fs::read_dir(folder.path().join("processes")).unwrap();
    let locks: Vec<_> = locks.map(|entry| entry.unwrap().path()).collect();
    let other = open(&folder).await;
    robbed.publish(to_work(1)).await.unwrap();
    let mut subscription = robbed.subscribe(vec![work()], 1).await.unwrap();
    let delivery = next(&mut subscription).await;
    for lock in locks {
        std::fs::remove_file(lock).unwrap();
    }
    let mut takes_over = other.subscribe(vec![work()], 1).await.unwrap();
    let copy = next(&mut takes_over).await;
    assert!(copy.redelivered);
    tokio::time::timeout(Duration::from_secs(5), delivery.lost.cancelled()).await.expect("never told");
    assert_eq!(robbed.settle(delivery, Vec::new()).await.unwrap(), Settlement::Lost);
    assert_eq!(other.settle(copy, Vec::new()).await.unwrap(), Settlement::Done);
    // It is a process again, and works on.
    other.publish(to_work(2)).await.unwrap();
    drop(takes_over);
    assert_eq!(next(&mut subscription).await.message, message(2));
}

#[tokio::test]
async fn what_goes_to_processes_reaches_those_it_is_for_in_every_process() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (open(&folder).await, open(&folder).await);
    let (first, second) = (ProcessId::generate(), ProcessId::generate());
    let mut at_one = one.subscribe(vec![Queue::Process(first)], 10).await.unwrap();
    let mut at_two = two.subscribe(vec![Queue::Process(second.clone())], 10).await.unwrap();
    one.publish(to(Target::Process(second), "answer")).await.unwrap();
    one.publish(to(Target::Everybody, "news")).await.unwrap();
    one.publish(to(Target::Process(ProcessId::generate()), "nobody")).await.unwrap();
    assert_eq!(next(&mut at_one).await.message, message("news"));
    assert_eq!(next(&mut at_two).await.message, message("answer"));
    let news = next(&mut at_two).await;
    assert_eq!(news.message, message("news"));
    assert_eq!(two.settle(news, vec![to_work("said")]).await.unwrap(), Settlement::Done);
    assert_eq!(one.depth(&work()).await.unwrap(), Depth { ready: 1, unsettled: 0 });
    assert!(at_one.try_next().is_none() && at_two.try_next().is_none());
}

#[tokio::test]
async fn the_completion_queue_has_one_reader_and_the_next_takes_over() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (open(&folder).await, open(&folder).await);
    let mut active = one.subscribe(vec![Queue::Completion], 10).await.unwrap();
    let mut standby = two.subscribe(vec![Queue::Completion], 10).await.unwrap();
    let completion = |id| to(Target::Queue(Queue::Completion), id);
    for id in 0..5 {
        two.publish(completion(id)).await.unwrap();
    }
    for id in 0..5 {
        let delivery = next(&mut active).await;
        assert_eq!(delivery.message, message(id));
        one.settle(delivery, Vec::new()).await.unwrap();
    }
    assert!(standby.try_next().is_none());
    active.stop();
    assert!(active.next().await.is_none());
    two.publish(completion(5)).await.unwrap();
    assert_eq!(next(&mut standby).await.message, message(5));
}

#[tokio::test]
async fn closing_gives_back_and_ends_everything() {
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    broker.publish(to_work(1)).await.unwrap();
    let mut subscription = broker.subscribe(vec![work()], 1).await.unwrap();
    let delivery = next(&mut subscription).await;
    broker.close(Duration::from_secs(5)).await;
    broker.close(Duration::from_secs(5)).await;
    assert!(delivery.lost.is_cancelled());
    assert!(subscription.next().await.is_none());
    assert_eq!(*broker.health().borrow(), Health::Closed);
    for refused in [
        broker.settle(delivery, Vec::new()).await.map(drop),
        broker.publish(to_work(2)).await,
        broker.ensure(&work()).await,
        broker.depth(&work()).await.map(drop),
        broker.subscribe(vec![work()], 1).await.map(drop),
    ] {
        assert!(matches!(refused, Err(BrokerError::Closed)), "{refused:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path().join("processes")).unwrap().count(), 0);
    let next_one = open(&folder).await;
    assert_eq!(next_one.depth(&work()).await.unwrap(), Depth { ready: 1, unsettled: 0 });
}

#[tokio::test]
async fn a_message_that_was_delivered_too_often_goes_to_the_collector_behind_what_was_sent_before() {
    let folder = TempDir::new().unwrap();
    open(&folder).await.publish(to_work("poison")).await.unwrap();
    for delivered_before in 0..=50 {
        let broker = open(&folder).await;
        let mut subscription = broker.subscribe(vec![work()], 1).await.unwrap();
        assert_eq!(next(&mut subscription).await.delivery_count, delivered_before);
        if delivered_before == 50 {
            let Outgoing { message, .. } = to_work("before");
            broker.publish(Outgoing { target: Target::Queue(Queue::Completion), message }).await.unwrap();
        }
        broker.close(Duration::from_secs(5)).await;
    }
    let broker = open(&folder).await;
    assert_eq!(broker.depth(&work()).await.unwrap(), Depth::default());
    let mut completions = broker.subscribe(vec![Queue::Completion], 9).await.unwrap();
    assert_eq!(next(&mut completions).await.message.message_id, "before");
    let dead = next(&mut completions).await.message;
    let death = Death::of(&dead).unwrap();
    assert_eq!((dead.message_id.as_str(), death.from), ("poison", Some(work())));
    assert!(death.reason.contains("too often") && death.at_ms.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_waits_while_the_disk_is_full_and_settling_makes_room() {
    let folder = TempDir::new().unwrap();
    let (store, member) = storage::open_and_join(folder.path(), &Group::main()).unwrap();
    store.connection.pragma_update(None, "max_page_count", 40).unwrap();
    let broker = Arc::new(EmbeddedBroker::start(store, member).unwrap());
    broker.ensure(&work()).await.unwrap();
    let mut subscription = broker.subscribe(vec![work()], 100).await.unwrap();
    let publishing = Arc::clone(&broker);
    let publishing = tokio::spawn(async move {
        for id in 0..40 {
            let mut outgoing = to_work(id);
            outgoing.message.body = Bytes::from(vec![b' '; 60_000]);
            publishing.publish(outgoing).await.unwrap();
        }
    });
    wait_for_health(
        &broker,
        |health| matches!(health, Health::Blocked(why) if why.starts_with("disk full: ")),
    )
    .await;
    assert!(!publishing.is_finished());
    for id in 0..40 {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.message.message_id, id.to_string());
        broker.settle(delivery, Vec::new()).await.unwrap();
    }
    publishing.await.unwrap();
    wait_for_health(&broker, |health| *health == Health::Connected).await;
}

#[tokio::test]
async fn a_close_does_not_wait_for_a_full_disk_beyond_its_grace() {
    let folder = TempDir::new().unwrap();
    let (store, member) = storage::open_and_join(folder.path(), &Group::main()).unwrap();
    store.connection.pragma_update(None, "max_page_count", 20).unwrap();
    let broker = Arc::new(EmbeddedBroker::start(store, member).unwrap());
    broker.ensure(&work()).await.unwrap();
    let publishing = Arc::clone(&broker);
    let publishing = tokio::spawn(async move {
        let mut outgoing = to_work(1);
        outgoing.message.body = Bytes::from(vec![b' '; 1_000_000]);
        publishing.publish(outgoing).await
    });
    wait_for_health(&broker, |health| matches!(health, Health::Blocked(_))).await;
    broker.close(Duration::from_millis(50)).await;
    assert!(matches!(publishing.await.unwrap(), Err(BrokerError::Closed)));
}

#[test]
fn a_folder_that_cannot_be_used_is_named_with_a_remedy() {
    let folder = TempDir::new().unwrap();
    let refusal = |path: &Path| EmbeddedBroker::open(path, &Group::main()).unwrap_err().to_string();

    let file = folder.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let refused = refusal(&file);
    assert!(refused.contains("a-file") && refused.contains("choose another"), "{refused}");

    let damaged = folder.path().join("damaged");
    std::fs::create_dir(&damaged).unwrap();
    std::fs::write(damaged.join("queue.db"), vec![b'x'; 100_000]).unwrap();
    let refused = refusal(&damaged);
    assert!(refused.contains("damaged/queue.db") && refused.contains("move it away"), "{refused}");

    let newer = folder.path().join("newer");
    drop(EmbeddedBroker::open(&newer, &Group::main()).unwrap());
    let connection = rusqlite::Connection::open(newer.join("queue.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    let refused = refusal(&newer);
    assert!(refused.contains("newer/queue.db is of format 99"), "{refused}");

    let foreign = folder.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    let connection = rusqlite::Connection::open(foreign.join("queue.db")).unwrap();
    connection.execute_batch("CREATE TABLE theirs (a)").unwrap();
    assert!(refusal(&foreign).contains("belongs to another program"));
}

/// The variable that makes this test's binary the process to be killed.
const HOLD_IN_FOLDER: &str = "WINDROW_TEST_HOLD_IN_FOLDER";

#[tokio::test]
async fn the_deliveries_of_a_killed_process_reach_another_within_moments() {
    if let Some(folder) = std::env::var_os(HOLD_IN_FOLDER) {
        hold_deliveries(Path::new(&folder)).await;
    }
    let folder = TempDir::new().unwrap();
    let broker = open(&folder).await;
    for id in 0..10 {
        broker.publish(to_work(id)).await.unwrap();
    }
    let this_test = std::thread::current().name().map(str::to_owned).unwrap();
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &this_test])
        .env(HOLD_IN_FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("holding 4")));
    let mut subscription = broker.subscribe(vec![work()], 100).await.unwrap();
    for id in 4..10 {
        assert_eq!(next(&mut subscription).await.message, message(id));
    }
    child.kill().unwrap();
    let killed = Instant::now();
    child.wait().unwrap();
    for id in 0..4 {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.message, message(id));
        assert!(delivery.redelivered);
    }
    // About one and a half on a machine with time to spare.
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
}

async fn hold_deliveries(folder: &Path) -> ! {
    let broker = EmbeddedBroker::open(folder, &Group::main()).unwrap();
    let mut subscription = broker.subscribe(vec![work()], 4).await.unwrap();
    let mut held = Vec::new();
    loop {
        held.push(next(&mut subscription).await);
        if held.len() == 4 {
            println!("holding {}", held.len());
            std::future::pending::<()>().await;
        }
    }
}
