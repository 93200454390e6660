//! What every broker backend must do, as the comments of `windrow_common::broker::Broker` promise it.
//!
//! Each check works in a collector group of its own, so all of them can run at once on one broker.
mod site;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all, try_join_all};
use windrow_common::broker::address::{BrokerAddress, connect};
use windrow_common::broker::{
    Broker, BrokerError, Delivery, Depth, Health, Outgoing, Queue, Settlement, Subscription, Target,
};
use windrow_common::envelope::{Headers, MAX_BODY_BYTES, Message};
use windrow_common::ids::{Group, ProcessId, StageKey};

use self::site::expect_silence;
pub use self::site::{Connector, Site, message, next, take, to, until_ready};

/// Far longer than anything here takes; a check that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must happen for a check to believe that nothing will.
const SILENCE: Duration = Duration::from_millis(400);
/// A check and its name.
pub type Check = (&'static str, fn(Site) -> BoxFuture<'static, Result<()>>);

/// Every check.
pub fn checks() -> Vec<Check> {
    macro_rules! checks {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), |site| Box::pin($name(site)))),*] };
    }
    checks![
        a_confirmed_message_outlives_its_publisher_whole,
        every_kind_of_queue_takes_and_gives,
        unsettled_deliveries_come_back_first_and_marked_when_their_reader_is_gone,
        a_settlement_sends_everything_and_lets_go_once,
        a_failed_settlement_lets_nothing_go,
        messages_of_one_task_stay_in_order,
        due_comes_before_work,
        a_delay_comes_back_in_its_time_and_not_before,
        depth_counts_what_waits,
        a_closed_broker_gives_deliveries_back_and_refuses_everything,
        everybody_hears_broadcasts_and_only_the_asker_its_answer,
        a_queue_nobody_ensured_never_swallows_a_message,
        no_more_than_the_prefetch_is_unsettled,
        a_stopped_subscription_still_gives_what_is_here,
        many_publishers_and_settlers_at_once_lose_nothing,
        one_reader_of_completions_at_a_time,
        ensuring_again_from_anywhere_changes_nothing,
        what_is_too_large_is_refused_and_what_is_just_not_passes,
    ]
}

/// Runs every check at once; the failures, each with the check's name.
pub async fn run_all(address: &BrokerAddress) -> Vec<String> {
    run_on(|| Site::new(address)).await
}

/// The same, each check on a site of its own.
pub async fn run_on(site: impl Fn() -> Result<Site>) -> Vec<String> {
    let runs = checks().into_iter().map(|(name, check)| {
        let site = site();
        tokio::spawn(async move {
            let started = Instant::now();
            let outcome = match site {
                Ok(site) => check(site).await,
                Err(error) => Err(error),
            };
            println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
            outcome.err().map(|error| format!("{name}: {error:#}"))
        })
    });
    let outcomes = join_all(runs).await;
    outcomes
        .into_iter()
        .filter_map(|outcome| outcome.unwrap_or_else(|panic| Some(panic.to_string())))
        .collect()
}

async fn a_confirmed_message_outlives_its_publisher_whole(site: Site) -> Result<()> {
    let publisher = site.connect().await?;
    publisher.ensure(&site.work()).await?;
    let mut sent = message("m");
    "p1".clone_into(&mut sent.reply_to);
    "zstd".clone_into(&mut sent.content_encoding);
    sent.body = (0..=255).cycle().take(300_000).collect();
    sent.headers.set_int("hop", i64::MAX.unsigned_abs());
    publisher.publish(Outgoing { target: Target::Queue(site.work()), message: sent.clone() }).await?;
    publisher.close(Duration::ZERO).await;

    let reader = site.connect().await?;
    let mut deliveries = reader.subscribe(vec![site.work()], 10).await?;
    let got = next(&mut deliveries).await?;
    // Order and the broker's own headers aside.
    for (name, value) in sent.headers.iter() {
        ensure!(
            got.message.headers.get(name) == Some(value),
            "header {name} became {:?}",
            got.message.headers
        );
    }
    let same = Message { headers: sent.headers.clone(), ..got.message.clone() };
    ensure!(same == sent, "the message changed");
    ensure!(!got.redelivered && got.delivery_count == 0 && got.queue == site.work(), "{:?}", got.queue);
    ensure!(reader.settle(got, vec![]).await? == Settlement::Done);
    reader.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn every_kind_of_queue_takes_and_gives(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    for queue in [site.work(), site.due(), site.held(), Queue::Completion, Queue::Parking] {
        broker.ensure(&queue).await?;
        broker.publish(to(queue.clone(), "m")).await?;
        let mut deliveries = broker.subscribe(vec![queue.clone()], 1).await?;
        let delivery = next(&mut deliveries).await?;
        ensure!(delivery.queue == queue && delivery.message.message_id == "m");
        broker.settle(delivery, vec![]).await?;
        ensure!(broker.depth(&queue).await? == Depth::default(), "{queue:?} is not empty");
    }
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn unsettled_deliveries_come_back_first_and_marked_when_their_reader_is_gone(site: Site) -> Result<()> {
    let first = site.connect().await?;
    first.ensure(&site.work()).await?;
    for number in 0..6 {
        first.publish(to(site.work(), &number.to_string())).await?;
    }
    let mut deliveries = first.subscribe(vec![site.work()], 3).await?;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut deliveries).await?);
    }
    ensure!(held.iter().all(|delivery| !delivery.lost.is_cancelled()), "lost while still ours");
    first.close(Duration::ZERO).await;
    for delivery in &held {
        tokio::time::timeout(PATIENCE, delivery.lost.cancelled()).await.context("never told of the loss")?;
    }

    let second = site.connect().await?;
    let mut deliveries = second.subscribe(vec![site.work()], 10).await?;
    for number in 0..6 {
        let delivery = next(&mut deliveries).await?;
        ensure!(delivery.message.message_id == number.to_string(), "{} came", delivery.message.message_id);
        ensure!(delivery.redelivered == (number < 3), "{number}: redelivered {}", delivery.redelivered);
        ensure!((delivery.delivery_count > 0) == (number < 3), "{number}: {}", delivery.delivery_count);
        second.settle(delivery, vec![]).await?;
    }
    second.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn a_settlement_sends_everything_and_lets_go_once(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    for queue in [site.work(), site.due(), Queue::Completion] {
        broker.ensure(&queue).await?;
    }
    broker.publish(to(site.work(), "chunk")).await?;
    let mut deliveries = broker.subscribe(vec![site.work()], 1).await?;
    let delivery = next(&mut deliveries).await?;
    let outgoing = vec![to(site.due(), "remainder"), to(Queue::Completion, "outcomes")];
    ensure!(broker.settle(delivery, outgoing).await? == Settlement::Done);
    ensure!(broker.depth(&site.due()).await?.ready == 1, "no remainder");
    ensure!(broker.depth(&Queue::Completion).await?.ready == 1, "no completion");
    broker.close(Duration::from_secs(5)).await;

    let later = site.connect().await?;
    ensure!(later.depth(&site.work()).await? == Depth::default(), "the chunk is still there");
    later.close(Duration::ZERO).await;
    Ok(())
}

async fn a_failed_settlement_lets_nothing_go(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    broker.ensure(&site.work()).await?;
    broker.ensure(&Queue::Completion).await?;
    broker.publish(to(site.work(), "chunk")).await?;
    let mut deliveries = broker.subscribe(vec![site.work()], 1).await?;
    let delivery = next(&mut deliveries).await?;
    let mut huge = to(Queue::Completion, "outcomes");
    huge.message.body = Bytes::from(vec![b' '; MAX_BODY_BYTES + 1]);
    let outcome = broker.settle(delivery, vec![huge]).await;
    ensure!(matches!(outcome, Err(BrokerError::TooLarge { .. })), "{outcome:?}");
    ensure!(broker.depth(&Queue::Completion).await? == Depth::default());
    broker.close(Duration::from_secs(5)).await;

    let later = site.connect().await?;
    until_ready(later.as_ref(), &site.work(), 1).await?;
    later.close(Duration::ZERO).await;
    Ok(())
}

async fn messages_of_one_task_stay_in_order(site: Site) -> Result<()> {
    const COUNT: usize = 500;
    let broker = site.connect().await?;
    broker.ensure(&site.work()).await?;
    // Under way together, begun one after another.
    try_join_all((0..COUNT).map(|number| broker.publish(to(site.work(), &number.to_string())))).await?;
    let mut deliveries = broker.subscribe(vec![site.work()], 50).await?;
    let ids = take(broker.as_ref(), &mut deliveries, COUNT).await?;
    let expected: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
    let first_wrong = ids.iter().zip(&expected).find(|(got, expected)| got != expected);
    ensure!(first_wrong.is_none(), "out of order from {first_wrong:?} on");
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn due_comes_before_work(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    broker.ensure(&site.work()).await?;
    broker.ensure(&site.due()).await?;
    for number in 0..3 {
        broker.publish(to(site.work(), &format!("work {number}"))).await?;
        broker.publish(to(site.due(), &format!("due {number}"))).await?;
    }
    let mut deliveries = broker.subscribe(vec![site.due(), site.work()], 10).await?;
    until_ready(broker.as_ref(), &site.work(), 0).await?;
    until_ready(broker.as_ref(), &site.due(), 0).await?;
    // They have left the broker; nothing tells when all have arrived.
    tokio::time::sleep(SILENCE).await;
    let ids = take(broker.as_ref(), &mut deliveries, 6).await?;
    ensure!(ids == ["due 0", "due 1", "due 2", "work 0", "work 1", "work 2"], "{ids:?}");
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn a_delay_comes_back_in_its_time_and_not_before(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    broker.ensure(&site.due()).await?;
    let mut deliveries = broker.subscribe(vec![site.due()], 10).await?;
    let begun = Instant::now();
    for (id, wanted_ms) in [("third", 2100), ("first", 300), ("second", 1700)] {
        let target = Target::Delay { delay: Duration::from_millis(wanted_ms), stage: site.stage.clone() };
        broker.publish(Outgoing { target, message: message(id) }).await?;
    }
    for (id, level_s) in [("first", 1), ("second", 2), ("third", 3)] {
        let delivery = next(&mut deliveries).await?;
        let waited = begun.elapsed().as_secs_f64();
        ensure!(delivery.message.message_id == id, "{} came for {id}", delivery.message.message_id);
        ensure!((f64::from(level_s)..f64::from(level_s) + 1.5).contains(&waited), "{id} after {waited} s");
        ensure!(delivery.queue == site.due() && !delivery.redelivered);
        broker.settle(delivery, vec![]).await?;
    }
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn depth_counts_what_waits(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    ensure!(broker.depth(&site.work()).await? == Depth::default(), "a queue that is not there holds none");
    broker.ensure(&site.work()).await?;
    for number in 0..4 {
        broker.publish(to(site.work(), &number.to_string())).await?;
    }
    until_ready(broker.as_ref(), &site.work(), 4).await?;
    let mut deliveries = broker.subscribe(vec![site.work()], 3).await?;
    let first = next(&mut deliveries).await?;
    until_ready(broker.as_ref(), &site.work(), 1).await?;
    let unsettled = broker.depth(&site.work()).await?.unsettled;
    if broker.abilities().sees_unsettled {
        ensure!(unsettled == 3, "{unsettled} unsettled");
    } else {
        println!("depth_counts_what_waits: this backend can't see unsettled deliveries; that is not checked");
        ensure!(unsettled == 0, "a backend that can't see them says 0");
    }
    broker.settle(first, vec![]).await?;
    until_ready(broker.as_ref(), &site.work(), 0).await?;
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn a_closed_broker_gives_deliveries_back_and_refuses_everything(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    ensure!(*broker.health().borrow() == Health::Connected);
    broker.ensure(&site.work()).await?;
    broker.publish(to(site.work(), "m")).await?;
    let mut deliveries = broker.subscribe(vec![site.work()], 5).await?;
    let delivery = next(&mut deliveries).await?;
    let begun = Instant::now();
    broker.close(Duration::from_secs(5)).await;
    ensure!(begun.elapsed() < Duration::from_secs(4), "closing an idle broker took {:?}", begun.elapsed());
    broker.close(Duration::from_secs(5)).await;
    ensure!(*broker.health().borrow() == Health::Closed);
    let closed = |outcome: Result<(), BrokerError>| matches!(outcome, Err(BrokerError::Closed));
    ensure!(closed(broker.publish(to(site.work(), "n")).await), "published after the close");
    ensure!(closed(broker.ensure(&site.work()).await), "ensured after the close");
    ensure!(closed(broker.settle(delivery, vec![]).await.map(drop)), "settled after the close");
    ensure!(closed(broker.depth(&site.work()).await.map(drop)), "told a depth after the close");
    ensure!(closed(broker.subscribe(vec![site.work()], 1).await.map(drop)), "subscribed after the close");
    let end = tokio::time::timeout(PATIENCE, deliveries.next()).await.context("deliveries never ended")?;
    ensure!(end.is_none(), "delivered after the close");

    let later = site.connect().await?;
    until_ready(later.as_ref(), &site.work(), 1).await?;
    later.close(Duration::ZERO).await;
    Ok(())
}

async fn everybody_hears_broadcasts_and_only_the_asker_its_answer(site: Site) -> Result<()> {
    let (one, two) = (site.connect().await?, site.connect().await?);
    let (first, second) = (ProcessId::generate(), ProcessId::generate());
    let mut hears_one = one.subscribe(vec![Queue::Process(first.clone())], 10).await?;
    let mut hears_two = two.subscribe(vec![Queue::Process(second.clone())], 10).await?;
    one.publish(Outgoing { target: Target::Everybody, message: message("news") }).await?;
    two.publish(Outgoing { target: Target::Process(first.clone()), message: message("answer") }).await?;
    one.publish(Outgoing { target: Target::Process(ProcessId::generate()), message: message("x") }).await?;
    let mut heard = BTreeSet::new();
    for _ in 0..2 {
        let delivery = next(&mut hears_one).await?;
        ensure!(delivery.queue == Queue::Process(first.clone()));
        heard.insert(delivery.message.message_id);
    }
    ensure!(heard == BTreeSet::from(["answer".to_owned(), "news".to_owned()]), "{heard:?}");
    let delivery = next(&mut hears_two).await?;
    ensure!(delivery.message.message_id == "news");
    // Settling is not needed, and harmless.
    ensure!(two.settle(delivery, vec![]).await? == Settlement::Done);
    expect_silence(&mut hears_two).await?;
    expect_silence(&mut hears_one).await?;
    one.close(Duration::from_secs(5)).await;
    two.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn a_queue_nobody_ensured_never_swallows_a_message(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    match broker.publish(to(site.held(), "m")).await {
        Ok(()) => until_ready(broker.as_ref(), &site.held(), 1).await?,
        Err(error) => ensure!(matches!(error, BrokerError::Unroutable(_)), "{error}"),
    }
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn no_more_than_the_prefetch_is_unsettled(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    broker.ensure(&site.work()).await?;
    broker.ensure(&site.due()).await?;
    for number in 0..6 {
        broker.publish(to(site.work(), &number.to_string())).await?;
    }
    broker.publish(to(site.due(), "due")).await?;
    let mut deliveries = broker.subscribe(vec![site.due(), site.work()], 2).await?;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut deliveries).await?);
    }
    let of_work = held.iter().filter(|delivery| delivery.queue == site.work()).count();
    ensure!(of_work == 2, "the bound is per queue: {of_work} of the work queue");
    expect_silence(&mut deliveries).await?;
    ensure!(deliveries.try_next().is_none());
    // The one of the due queue may have come in any place; only a place for work brings more.
    let at = held
        .iter()
        .position(|delivery| delivery.queue == site.work())
        .context("two are of the work queue")?;
    broker.settle(held.swap_remove(at), vec![]).await?;
    next(&mut deliveries).await?;
    expect_silence(&mut deliveries).await?;
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn a_stopped_subscription_still_gives_what_is_here(site: Site) -> Result<()> {
    const COUNT: usize = 20;
    let broker = site.connect().await?;
    broker.ensure(&site.work()).await?;
    for number in 0..COUNT {
        broker.publish(to(site.work(), &number.to_string())).await?;
    }
    let mut deliveries = broker.subscribe(vec![site.work()], 5).await?;
    let mut held = vec![next(&mut deliveries).await?];
    deliveries.stop();
    while let Some(delivery) =
        tokio::time::timeout(PATIENCE, deliveries.next()).await.context("deliveries never ended")?
    {
        held.push(delivery);
    }
    ensure!(held.len() <= 5, "{} came with a prefetch of 5", held.len());
    let mut ids: BTreeSet<String> = held.iter().map(|held| held.message.message_id.clone()).collect();
    for delivery in held {
        ensure!(!delivery.lost.is_cancelled(), "a stop loses nothing");
        ensure!(broker.settle(delivery, vec![]).await? == Settlement::Done);
    }
    let mut rest = broker.subscribe(vec![site.work()], 50).await?;
    let settled = ids.len();
    ids.extend(take(broker.as_ref(), &mut rest, COUNT - settled).await?);
    ensure!(ids.len() == COUNT, "{} different ones of {COUNT}", ids.len());
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn many_publishers_and_settlers_at_once_lose_nothing(site: Site) -> Result<()> {
    const TASKS: usize = 8;
    const EACH: usize = 150;
    let broker = site.connect().await?;
    broker.ensure(&site.work()).await?;
    broker.ensure(&Queue::Completion).await?;
    let publishers = (0..TASKS).map(|task| {
        let (broker, queue) = (Arc::clone(&broker), site.work());
        tokio::spawn(async move {
            for number in 0..EACH {
                broker.publish(to(queue.clone(), &format!("{task}/{number}"))).await?;
            }
            Ok::<(), BrokerError>(())
        })
    });
    let publishing = join_all(publishers.collect::<Vec<_>>());
    let mut deliveries = broker.subscribe(vec![site.work()], 64).await?;
    let settling = async {
        let mut settlers = Vec::new();
        for _ in 0..TASKS * EACH {
            let delivery = next(&mut deliveries).await?;
            let broker = Arc::clone(&broker);
            settlers.push(tokio::spawn(async move {
                let done = to(Queue::Completion, &delivery.message.message_id);
                broker.settle(delivery, vec![done]).await
            }));
        }
        anyhow::Ok(join_all(settlers).await)
    };
    let (published, settled) = tokio::join!(publishing, settling);
    for outcome in published {
        outcome??;
    }
    for outcome in settled? {
        ensure!(outcome?? == Settlement::Done);
    }
    let mut completions = broker.subscribe(vec![Queue::Completion], 100).await?;
    let ids: BTreeSet<String> =
        take(broker.as_ref(), &mut completions, TASKS * EACH).await?.into_iter().collect();
    ensure!(ids.len() == TASKS * EACH, "{} different ones", ids.len());
    ensure!(broker.depth(&site.work()).await? == Depth::default());
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn one_reader_of_completions_at_a_time(site: Site) -> Result<()> {
    let (one, two) = (site.connect().await?, site.connect().await?);
    one.ensure(&Queue::Completion).await?;
    let mut active = one.subscribe(vec![Queue::Completion], 1).await?;
    let mut waiting = two.subscribe(vec![Queue::Completion], 1).await?;
    for number in 0..3 {
        two.publish(to(Queue::Completion, &number.to_string())).await?;
    }
    let held = next(&mut active).await?;
    expect_silence(&mut waiting).await?;
    one.close(Duration::ZERO).await;
    drop(held);
    let ids = take(two.as_ref(), &mut waiting, 3).await?;
    ensure!(ids == ["0", "1", "2"], "{ids:?}");
    two.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn ensuring_again_from_anywhere_changes_nothing(site: Site) -> Result<()> {
    let (one, two) = (site.connect().await?, site.connect().await?);
    one.ensure(&site.due()).await?;
    one.publish(to(site.due(), "m")).await?;
    let queues = [site.work(), site.due(), site.held(), Queue::Completion, Queue::Parking];
    let both = queues.iter().flat_map(|queue| [one.ensure(queue), two.ensure(queue)]);
    try_join_all(both).await?;
    until_ready(two.as_ref(), &site.due(), 1).await?;
    one.close(Duration::from_secs(5)).await;
    two.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn what_is_too_large_is_refused_and_what_is_just_not_passes(site: Site) -> Result<()> {
    let broker = site.connect().await?;
    broker.ensure(&site.work()).await?;
    let of_size = |bytes| {
        let mut outgoing = to(site.work(), "m");
        outgoing.message.body = Bytes::from(vec![b' '; bytes]);
        outgoing
    };
    let outcome = broker.publish(of_size(MAX_BODY_BYTES + 1)).await;
    ensure!(matches!(outcome, Err(BrokerError::TooLarge { .. })), "{outcome:?}");
    broker.publish(of_size(MAX_BODY_BYTES)).await?;
    let mut deliveries = broker.subscribe(vec![site.work()], 1).await?;
    let delivery = next(&mut deliveries).await?;
    ensure!(delivery.message.body.len() == MAX_BODY_BYTES);
    broker.settle(delivery, vec![]).await?;
    broker.close(Duration::from_secs(5)).await;
    Ok(())
}
