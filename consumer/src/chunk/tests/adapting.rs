//! `concurrency = "auto"` against something that takes twelve calls at once and refuses more.

use windrow_common::job::Bounds;

use super::*;

const AT_ONCE: u32 = 12;

#[tokio::test]
async fn auto_finds_what_is_taken_at_once_and_every_item_gets_its_outcome() {
    let (under_way, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let seen = Arc::clone(&most);
    let settings = Settings { concurrency: Concurrency::Auto(Bounds { least: 1, most: 64 }), ..USUAL };
    let mut bench = Bench::new(settings, move |item| {
        let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
        async move {
            let calls = under_way.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(calls, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            under_way.fetch_sub(1, Ordering::SeqCst);
            if calls <= AT_ONCE {
                return Attempt::Succeeded(item.raw);
            }
            let error = ItemError { class: "throttled".into(), message: "too many".into(), status: None };
            Attempt::Throttled { error, after: Some(Duration::from_millis(10)) }
        }
        .boxed()
    })
    .await;
    bench.handle(&header(300)).await;
    let mut settled = 0;
    while settled < 300 {
        let outcomes = bench.outcomes().await;
        assert!(outcomes.outcomes.iter().all(|outcome| outcome == Outcome::Succeeded));
        settled += outcomes.items.len();
    }
    let (most, now) = (seen.load(Ordering::SeqCst), bench.intake.metrics.concurrency.get());
    assert!((AT_ONCE / 2 + 1..=AT_ONCE * 2).contains(&most), "at most {most} at once, {now} in the end");
    assert!((1..=i64::from(AT_ONCE) * 2).contains(&now), "{now}");
    bench.assert_settled().await;
}
