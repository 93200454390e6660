//! What RabbitMQ says of a message it dead-lettered, in our words.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::topology::Topology;
use crate::broker::Queue;
use crate::broker::parking::{DELIVERED_TOO_OFTEN, Death};

/// The latest death of a message; None when no broker dead-lettered it. RabbitMQ keeps them in `x-death`, latest
/// first; headers such as `x-first-death-queue` would tell of a wait in a delay level before.
pub(super) fn of(topology: &Topology, properties: &BasicProperties, routing_key: &str) -> Option<Death> {
    let Some(AMQPValue::FieldArray(deaths)) = properties.headers().as_ref()?.inner().get("x-death") else {
        return None;
    };
    let Some(AMQPValue::FieldTable(death)) = deaths.as_slice().first() else { return None };
    let queue = text(death, "queue")?;
    let (reason, from) = match text(death, "reason")?.as_str() {
        "delivery_limit" => (DELIVERED_TOO_OFTEN.to_owned(), topology.queue_named(&queue)),
        // Only delay levels let messages expire, and only a key without a due queue leads from there to here.
        "expired" => (
            "it has waited, and the due queue it was to come back to is not there".to_owned(),
            topology.stage_of(routing_key).map(Queue::Due),
        ),
        other => (format!("the broker gave it up: {other}"), topology.queue_named(&queue)),
    };
    let at_ms = match death.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => seconds.checked_mul(1_000),
        _ => None,
    };
    Some(Death { reason, from, at_ms, ..Death::default() })
}

fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::{FieldArray, LongString};

    fn properties(deaths: &[(&str, &str)]) -> BasicProperties {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let deaths = deaths.iter().map(|(queue, reason)| {
            let mut death = FieldTable::default();
            death.insert("queue".into(), text(queue));
            death.insert("reason".into(), text(reason));
            death.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
            AMQPValue::FieldTable(death)
        });
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(deaths.collect::<Vec<_>>())));
        BasicProperties::default().with_headers(headers)
    }

    #[test]
    fn the_latest_death_counts_and_its_queue_is_known() {
        let topology = Topology::new(&"main".parse().unwrap());
        let of = |deaths: &[(&str, &str)], key| super::of(&topology, &properties(deaths), key);
        let waited = ("windrow.v1.delay.8", "expired");
        let due = ("windrow.v1.due.main.a~b.c", "delivery_limit");
        let death = of(&[due, waited], "windrow.v1.completion.main").unwrap();
        assert_eq!(death.reason, DELIVERED_TOO_OFTEN);
        assert_eq!(death.at_ms, Some(1_700_000_000_000));
        assert!(matches!(&death.from, Some(Queue::Due(key)) if key.to_string() == "a.b/c"));
        let stray = of(&[waited], "main.a~b.c").unwrap();
        assert_eq!(stray.from, death.from);
        assert!(stray.reason.contains("due queue"));
        let rejected = of(&[("windrow.v1.held.main.a.b", "rejected")], "k").unwrap();
        assert!(rejected.reason.contains("rejected") && matches!(rejected.from, Some(Queue::Held(_))));
        assert_eq!(of(&[], "k"), None);
        assert_eq!(super::of(&topology, &BasicProperties::default(), "k"), None);
    }
}
