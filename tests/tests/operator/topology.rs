//! `windrow topology check`.

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties};
use windrow_tests::desk::{Desk, Said};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const JOB: &str = "name = \"checked\"\n[source]\ntype = \"jsonl\"\npath = \"items.jsonl\"\n\
                   [[stage]]\nname = \"call\"\ntype = \"echo\"\n";

/// Per group: 3 exchanges, the completion and the parking queue; shared: `due`, `stray`, 20 levels of each an
/// exchange and a queue; of the one stage: work, due, held and alone.
const ALL: usize = 3 + 2 + 2 + 40 + 4;

pub(super) async fn what_differs_is_told_and_nothing_is_changed(server: &RabbitMqServer) {
    let desk = Desk::new(JOB);
    let windrow = |action| desk.windrow(&["topology", action, "--jobs", ".", "--broker", &server.uri()]);
    let said = windrow("check").ended(1, &[&format!("{ALL} differences of {ALL} queues and exchanges")]);
    assert_eq!(said.out.lines().count(), ALL, "{said}");
    assert!(said.out.lines().all(|line| line.starts_with("missing  ")), "{said}");
    let listed = server.rabbitmqctl(&["list_queues", "name"]).await.unwrap();
    assert!(!listed.contains("windrow.v1."), "the check made something: {listed}");

    windrow("apply").ended(0, &[]);
    let said = windrow("check").ended(0, &[]);
    assert!(said.out.starts_with(&format!("{ALL} queues and exchanges are as")), "{said}");

    spoil(server).await;
    for _ in 0..2 {
        told(&windrow("check").ended(1, &["4 differences"]));
    }
    desk.windrow(&["topology", "check", "--jobs", ".", "--broker", "embedded:queue"]).ended(0, &[]);
    assert!(!desk.path("queue").exists());
}

/// Deletes what was spoiled, for whoever needs it next to make anew.
pub(super) async fn put_right(server: &RabbitMqServer) {
    let connection = Connection::connect(&server.uri(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.queue_delete("windrow.v1.parking.main".into(), QueueDeleteOptions::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

/// Another limit and nothing else, another type, an argument too many, and an exchange that is gone.
async fn spoil(server: &RabbitMqServer) {
    let connection = Connection::connect(&server.uri(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    let quorum = ("x-queue-type", text("quorum"));
    let almost = [
        quorum.clone(),
        ("x-queue-leader-locator", text("balanced")),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-dead-letter-exchange", text("windrow.v1.group.main")),
        ("x-dead-letter-routing-key", text("windrow.v1.completion.main")),
        ("x-delivery-limit", AMQPValue::LongLongInt(20)),
    ];
    make_anew(&channel, "windrow.v1.work.main.checked.call", &almost).await;
    make_anew(&channel, "windrow.v1.held.main.checked.call", &[]).await;
    make_anew(&channel, "windrow.v1.parking.main", &[quorum, ("x-max-length", AMQPValue::LongInt(9))]).await;
    let control = "windrow.v1.control.main";
    channel.exchange_delete(control.into(), ExchangeDeleteOptions::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

async fn make_anew(channel: &Channel, queue: &str, arguments: &[(&str, AMQPValue)]) {
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, table).await.unwrap();
}

fn told(said: &Said) {
    for (verdict, name, word) in [
        ("differs", "windrow.v1.work.main.checked.call", "x-delivery-limit"),
        ("differs", "windrow.v1.held.main.checked.call", "inequivalent arg"),
        ("differs", "windrow.v1.parking.main", "windrow topology apply"),
        ("missing", "windrow.v1.control.main", "windrow topology apply"),
    ] {
        let line = said.out.lines().find(|line| line.contains(name));
        let line = line.unwrap_or_else(|| panic!("nothing is said of {name}: {said}"));
        assert!(line.starts_with(verdict) && line.contains(word), "{line}");
    }
}
