//! Items whose time runs out while their chunk is worked on.

use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

/// A chunk whose time runs out in two seconds.
fn short_lived(count: u64) -> ChunkHeader {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(2);
    ChunkHeader { expires: Some(u64::try_from(now.as_millis()).unwrap()), ..header(count) }
}

#[tokio::test]
async fn what_has_begun_may_end_and_what_has_not_expires() {
    let mut bench = Bench::new(USUAL, |item| {
        async move {
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    bench.handle(&short_lived(10)).await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.outcomes.to_string(), "succeeded*4,expired*6");
    assert_eq!(outcomes.attempts.to_string(), "1*4,0*6");
    let last = outcomes.body.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap();
    let error: ItemError = serde_json::from_slice(last).unwrap();
    assert_eq!(error.class, "expired");
    bench.assert_settled().await;
}

#[tokio::test]
async fn a_retry_is_not_waited_for_beyond_an_items_time_and_never_made_after_it() {
    let settings = Settings { interval: Duration::from_secs(600), ..USUAL };
    let mut bench = Bench::new(settings, |item| {
        assert_eq!(item.attempt, 1, "it was tried after its time");
        failed(Retry::Later)
    })
    .await;
    bench.handle(&short_lived(3)).await;
    assert_eq!(bench.outcomes().await.handed_over.to_string(), "0-2");
    // A copy asks, though its time has run out.
    bench.handle_copy("0,2").await;
    let outcomes = bench.outcomes().await;
    assert_eq!(
        (outcomes.items.to_string(), outcomes.outcomes.to_string()),
        ("0,2".into(), "expired*2".into())
    );
    assert_eq!(outcomes.attempts.to_string(), "1*2");
}
