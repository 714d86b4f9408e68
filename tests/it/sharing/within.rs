//! What one transaction sets, and sets again, and undoes: copies that were made under it are not used under what follows.

use super::{NULLS, Scene, prepare, run, say};
use crate::support::raw::{self, tags};

const OFF: &str = "SET LOCAL array_nulls = off";

/// After these a statement that was parsed before means what it meant then.
async fn what_it_means_after(steps: &[&str]) {
    let scene = Scene::new().await;
    let mut one = scene.client("one").await;
    prepare(&mut one, "s", NULLS).await;
    for step in steps {
        assert!(!tags(&one.query(step).await).contains('E'), "{step}");
        // It has to be made, and may be kept.
        let _ = run(&mut one, "s", &[]).await;
    }
    assert_eq!(run(&mut one, "s", &[]).await, "null", "{steps:?}");
    one.query("COMMIT").await;
    scene.end([one]).await;
}

#[tokio::test]
async fn what_is_set_twice_is_what_was_set_last() {
    what_it_means_after(&["BEGIN", OFF, "SET LOCAL array_nulls = on"]).await;
    what_it_means_after(&["BEGIN", OFF, "SELECT set_config('array_nulls', 'on', true)"]).await;
}

#[tokio::test]
async fn what_is_set_ends_with_its_savepoint() {
    what_it_means_after(&["BEGIN", "SAVEPOINT a", OFF, "ROLLBACK TO a"]).await;
}

#[tokio::test]
async fn what_is_set_ends_with_a_transaction_that_another_follows() {
    what_it_means_after(&["BEGIN", OFF, "COMMIT AND CHAIN"]).await;
    what_it_means_after(&["BEGIN", OFF, "ROLLBACK AND CHAIN"]).await;
}

/// A transaction that has failed takes nothing but its end, which may be a statement that has to be made first.
#[tokio::test]
async fn a_transaction_that_has_failed_is_ended_by_a_prepared_statement() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.client("one").await, scene.client("two").await);
    for client in [&mut one, &mut two] {
        prepare(client, "end", "ROLLBACK").await;
        for _ in 0..2 {
            assert_eq!(tags(&client.query("BEGIN; SET LOCAL array_nulls = off; SELECT 1/0").await), "CCEZ");
            let end = [raw::bind("end", &[]), raw::execute(0), raw::sync()];
            assert_eq!(tags(&say(client, &end).await), "2CZ");
        }
    }
    scene.end([one, two]).await;
}
