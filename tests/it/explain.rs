//! What a query says of itself before it runs, word for word: EXPLAIN, but for DataFusion's plans at its end; and what it
//! is refused with, where its rows would change.

use std::sync::Arc;

use millstream::clock::Clock;
use millstream::connector::Connectors;
use millstream::connector::memory::{Memory, MemoryConnector};
use millstream::error::Result;
use millstream::session::{Outcome, Session};
use millstream::storage::Stores;

const TABLES: &str = "
    SET 'checkpoint.location' = 'memory://ck';
    CREATE TABLE bids (item STRING, price BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
      WITH ('connector' = 'memory', 'topic' = 'bids');
    CREATE TABLE out (item STRING, n BIGINT) WITH ('connector' = 'memory', 'topic' = 'out');
    CREATE TABLE files (item STRING, n BIGINT)
      WITH ('connector' = 'filesystem', 'path' = 'memory://lake/out', 'format' = 'parquet');";

/// What every text here begins with.
const BOTH_ENDS: &str = "query job/out
  reads bids WITH ('connector' = 'memory', 'topic' = 'bids')
    watermark of ts: ts - INTERVAL '5' SECOND, the least over partitions and sources
    idle after 1 min: a partition with nothing to read does not hold it back then
  writes out WITH ('connector' = 'memory', 'topic' = 'out')
    exactly-once: the topic remembers the rows of each epoch and refuses earlier runs, as long as the process lives
";

const COUNT: &str = "SELECT item, count(*) FROM bids GROUP BY item";

async fn explained(settings: &str, insert: &str) -> Result<String> {
    let connectors = Connectors::standard().with(Arc::new(MemoryConnector::new(Memory::new())));
    let clock = Clock::seeded(1, 0);
    let mut session = Session::with("job", connectors, Stores::new(clock.clone()), clock)?;
    let mut outcomes = session.execute_script(&format!("{TABLES} {settings} EXPLAIN {insert}")).await?;
    let Some(Outcome::Text(text)) = outcomes.pop() else { panic!("no text: {insert}") };
    Ok(text)
}

async fn check(settings: &str, select: &str, expected: &str) {
    let text = explained(settings, &format!("INSERT INTO out {select}")).await.unwrap();
    let (ours, plans) = text.split_once("logical plan\n").unwrap();
    assert_eq!(ours, format!("{BOTH_ENDS}{expected}"), "{select}");
    assert!(plans.contains("\nphysical plan of an epoch\n"), "{plans}");
}

#[tokio::test]
async fn a_window_is_append_only_and_goes_with_the_watermark() {
    check(
        "",
        "SELECT item, count(*) FROM TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '10' SECOND))
         GROUP BY window_start, window_end, item",
        "  result is append-only: what has come out stays
    aggregate-1 is append-only: a group comes out once, when the watermark has passed it
      remembers [count(Int64(1))[count]] by [date_bin(10 s, event time), date_bin(10 s, event time) + 10 s, item]
      until the watermark has passed its date_bin(10 s, event time)
",
    )
    .await;
}

#[tokio::test]
async fn a_group_without_a_window_is_updating_and_stays_for_good_or_for_the_ttl() {
    let emitted = "  result is updating, as aggregate-1 is
    aggregate-1 is updating: no key rises with event time, so a group is never complete, and changes with its rows
      remembers [count(Int64(1))[count]] by [item]
";
    let warned = "      for good: WARNING, this grows with the number of keys; SET 'state.ttl' bounds it\n";
    check("", COUNT, &format!("{emitted}{warned}")).await;
    let bounded = "      for 2 h after a row last touched it ('state.ttl')\n";
    check("SET 'state.ttl' = '120 min';", COUNT, &format!("{emitted}{bounded}")).await;
}

fn ranked(order: &str) -> String {
    format!(
        "SELECT item, price FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY item ORDER BY {order}) AS place FROM bids)
         WHERE place = 1"
    )
}

#[tokio::test]
async fn first_rows_are_append_only_and_their_keys_stay_for_good() {
    check(
        "",
        &ranked("ts"),
        "  result is append-only: what has come out stays
    first-1 is append-only: a row comes out once, when the watermark has passed it
      remembers [price, $partition, $span, $row] by [item, event time]
      until the watermark has passed its event time
    first-2 is append-only: the first row of a key comes out when it comes, and no other
      remembers which [item] were seen
      for good: WARNING, this grows with the number of keys; SET 'state.ttl' bounds it
",
    )
    .await;
}

/// What would make it append-only is another thing for groups than for rows.
#[tokio::test]
async fn what_changes_is_refused_by_files_with_what_would_stay() {
    for (select, advice) in [
        (COUNT.to_owned(), "files only takes rows that stay: group by window_start, window_end of TUMBLE"),
        (ranked("ts DESC"), "files only takes rows that stay: ORDER BY the column of a WATERMARK, ascending"),
    ] {
        let error = explained("", &format!("INSERT INTO files {select}")).await.unwrap_err().chain();
        assert!(error.contains(advice), "{error}");
    }
    for order in ["ts", "PROCTIME()"] {
        let text = explained("", &format!("INSERT INTO files {}", ranked(order))).await.unwrap();
        assert!(text.contains("result is append-only"), "{text}");
    }
}
