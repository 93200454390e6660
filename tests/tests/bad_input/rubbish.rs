//! Messages nobody can handle, on every queue of a fleet while a run goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::process::wait_until;
use windrow_tests::rabbitmq_server::{PASSWORD, RabbitMqServer};

use super::{calling, numbered};

const ITEMS: u64 = 2_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Queues that somebody reads; from each of them rubbish goes to the parking queue.
const READ: [&str; 4] = [
    "windrow.v1.work.main.unkind.call",
    "windrow.v1.due.main.unkind.call",
    "windrow.v1.alone.main.unkind.call",
    "windrow.v1.completion.main",
];

/// Where rubbish stays, or is passed over.
const UNREAD: [&str; 2] = ["windrow.v1.held.main.unkind.call", "windrow.v1.parking.main"];

pub(super) fn on_every_queue(server: &RabbitMqServer) {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("items.jsonl"), numbered(ITEMS)).unwrap();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 50 });
    let job = calling(&destination.url()).replace("items.jsonl", "../items.jsonl");
    let fleet = Fleet::new(folder.path(), &server.uri(), &job);
    let (mut collector, mut consumer) = fleet.start();
    let mut producer = fleet.producer("rubbish", None);
    wait_until("items are called", PATIENCE, || destination.call_count() >= 100);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let uri = server.uri();
    let connected = Connection::connect(&uri, ConnectionProperties::default());
    let connection = runtime.block_on(connected).unwrap();
    let sent = runtime.block_on(send(&connection));
    assert!((destination.call_count() as u64) < ITEMS, "the rubbish was to come in mid-run");
    let status = producer.wait(PATIENCE);
    assert!(status.success(), "{status}: {}", producer.log());
    check_sink(&fleet.data().join("out.jsonl"), ITEMS, true);
    check_balance(&report(&fleet.run_folder("rubbish")), ITEMS);
    let parked = runtime.block_on(parked(&connection, sent));
    for (id, (reason, from)) in &parked {
        assert!(!reason.is_empty() && id.contains(from.as_str()), "{id} from {from}: {reason}");
    }
    for process in [&mut collector, &mut consumer] {
        assert_eq!(process.ended(), None, "it died of rubbish: {}", process.log());
        process.terminate();
        assert!(process.wait(PATIENCE).success(), "{}", process.log());
    }
    for log in [collector.log(), consumer.log(), producer.log()] {
        assert!(!log.contains("panicked") && !log.contains(PASSWORD), "{log}");
    }
}

/// Sends rubbish everywhere; how many messages are to be parked.
async fn send(connection: &Connection) -> usize {
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut sent = 0;
    for queue in READ {
        for (what, properties, body) in rubbish() {
            let properties = properties.with_message_id(format!("{what} on {queue}").into());
            publish(&channel, "", queue, properties, &body).await;
            sent += 1;
        }
    }
    for queue in UNREAD {
        publish(&channel, "", queue, BasicProperties::default(), b"\xff\x00").await;
    }
    // To every process, and through a delay level to the due queue, where it is read.
    publish(&channel, "windrow.v1.control.main", "", BasicProperties::default(), b"\xff\x00").await;
    let late = BasicProperties::default().with_message_id("late on due".into());
    publish(&channel, "windrow.v1.delay.1", "main.unkind.call", late, b"\xff\x00").await;
    sent + 1
}

#[expect(clippy::disallowed_methods, reason = "rubbish does not come through the broker seam")]
async fn publish(channel: &Channel, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
    confirm.unwrap().await.unwrap();
}

/// What it is, its properties, and its body.
fn rubbish() -> Vec<(&'static str, BasicProperties, Vec<u8>)> {
    let with = |kind: &str, headers: &[(&str, AMQPValue)]| {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_type(kind.into()).with_headers(table)
    };
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    let newer = [("version", AMQPValue::LongLongInt(99)), ("run", text("rubbish"))];
    let odd = [
        ("version", AMQPValue::LongLongInt(1)),
        ("run", AMQPValue::Double(1.5)),
        ("items", text("5-1,,x")),
        ("attempts", AMQPValue::FieldTable(FieldTable::default())),
    ];
    let long = [("version", AMQPValue::LongLongInt(1)), ("run", text(&"x".repeat(115_000)))];
    let whole = [
        ("version", AMQPValue::LongLongInt(1)),
        ("run", text("unheard-of")),
        ("root_run", text("unheard-of")),
        ("job", text("unkind")),
        ("hash", text("ff")),
        ("stage", text("call")),
        ("source", text("main")),
        ("ordinal", AMQPValue::LongLongInt(0)),
        ("span", text("0-9")),
        ("items", text("0-9")),
    ];
    let noise: Vec<u8> =
        (0..4_096u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    vec![
        ("nothing", BasicProperties::default(), Vec::new()),
        ("noise", BasicProperties::default().with_content_encoding("zstd".into()), noise.clone()),
        ("a newer version", with("chunk", &newer), b"{}\n".to_vec()),
        ("odd headers", with("chunk", &odd), noise.clone()),
        ("odd outcomes", with("outcomes", &odd), noise),
        ("long headers", with("chunk", &long), Vec::new()),
        ("a huge body", with("chunk", &newer), vec![b'\n'; 17 * 1024 * 1024]),
        ("a huge chunk of a run nobody knows", with("chunk", &whole), vec![b'\n'; 17 * 1024 * 1024]),
    ]
}

/// Takes from the parking queue until as many are there as were sent: ids, with reason and place.
async fn parked(connection: &Connection, sent: usize) -> BTreeMap<String, (String, String)> {
    let channel = connection.create_channel().await.unwrap();
    let mut parked = BTreeMap::new();
    let taking = async {
        while parked.len() < sent {
            let got =
                channel.basic_get("windrow.v1.parking.main".into(), BasicGetOptions { no_ack: true }).await;
            let Some(message) = got.unwrap() else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let properties = &message.delivery.properties;
            let Some(id) = properties.message_id() else { continue };
            let header =
                |name: &str| match properties.headers().as_ref().and_then(|table| table.inner().get(name)) {
                    Some(AMQPValue::LongString(text)) => text.to_string(),
                    _ => String::new(),
                };
            parked.insert(id.to_string(), (header("parked_reason"), header("parked_from")));
        }
    };
    let all = tokio::time::timeout(PATIENCE, taking).await;
    assert!(all.is_ok(), "{} of {sent} are parked: {parked:#?}", parked.len());
    parked
}
