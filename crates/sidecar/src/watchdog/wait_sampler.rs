//! What slow statements wait for, by the server's own word.
//!
//! While a statement is in flight for long, the server is asked over the reserved connection, at most once a second
//! and never through the guarded pool: `pg_stat_activity` and `pg_blocking_pids` for what it waits for, and, if it runs for
//! far longer than its like did before, `pg_stat_user_tables` for tables that are read from end to end much more than usual. Nothing depends on the answer:
//! if there is none, slow statements are reported without it, and that is told once.

pub(crate) mod baseline;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pgleash_core::{Event, Moment, Running, Wait, Waiting};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::pool::state::WatchedPool;
use crate::upstream::server_conn::ServerConn;
use crate::watchdog::wait_sampler::baseline::Usual;

/// The state of one pool's survey.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    asking: AtomicBool,
    failing: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    asked: Option<Moment>,
    tables: Option<(Moment, HashMap<String, Table>)>,
    told: HashMap<String, Moment>,
    usual: Usual,
}

/// What has been read of a table from its beginning to its end, since the statistics were reset.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Table {
    scans: f64,
    rows_read: f64,
    live_rows: f64,
    /// Rows read so in a second, on the average since then.
    usual: f64,
}

impl Survey {
    /// Questions come no closer than this.
    const SPACING: Duration = Duration::from_secs(1);
    /// Statements that are in flight for less are not asked about.
    pub(crate) const SLOW: Duration = Duration::from_secs(1);
    /// About tables it is asked less often.
    const TABLES: Duration = Duration::from_secs(5);
    /// A table is told again after this.
    const AGAIN: Duration = Duration::from_secs(600);

    fn times(&self) -> parking_lot::MutexGuard<'_, Times> {
        self.times.lock()
    }

    /// Whether it may be asked now; if so, it is being asked from now on.
    fn begins(&self, now: Moment) -> bool {
        let mut times = self.times();
        if times.asked.is_some_and(|asked| now.since(asked) < Self::SPACING)
            || self.asking.swap(true, Ordering::AcqRel)
        {
            return false;
        }
        times.asked = Some(now);
        true
    }
}

/// Asks about the slow statements of a pool, if there are any and it is time. Must be called on a tokio runtime; the
/// question goes on in a task of its own, for three seconds at most.
pub(crate) fn look(pool: &WatchedPool, now: Moment) {
    let slow = pool.inner().ledger().in_flight_for(Survey::SLOW, now);
    let Some(conn) = slow.iter().find_map(|pid| pool.conn_of(*pid)) else { return };
    if !pool.inner().survey.begins(now) {
        return;
    }
    let pool = pool.clone();
    tokio::spawn(async move {
        let outcome = ask(&pool, &conn, &slow).await;
        let survey = &pool.inner().survey;
        let key = pool.key().clone();
        match outcome {
            Ok(()) if survey.failing.swap(false, Ordering::AcqRel) => {
                pool.inner().sink.emit(Event::SurveyRecovered { pool: key });
            }
            Ok(()) => {}
            Err(detail) => {
                if !survey.failing.swap(true, Ordering::AcqRel) {
                    pool.inner().sink.emit(Event::SurveyFailed { pool: key, detail });
                }
            }
        }
        survey.asking.store(false, Ordering::Release);
    });
}

async fn ask(pool: &WatchedPool, conn: &Arc<ServerConn>, slow: &[i32]) -> Result<(), String> {
    let epochs = pool.inner().ledger().epochs_of(slow);
    let pids: Vec<_> = slow.iter().map(ToString::to_string).collect();
    let question = format!(
        "SELECT pid, wait_event_type, wait_event, CASE WHEN wait_event_type = 'Lock' THEN \
         pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(pid), ',') END \
         FROM pg_catalog.pg_stat_activity WHERE pid IN ({})",
        pids.join(",")
    );
    let rows = pool.inner().probe.query(conn, &question).await?;
    let answers: HashMap<i32, Waiting> = rows_of(&rows).filter_map(answer).collect();
    pool.inner().ledger().waits_for(&epochs, &answers);
    let now = pgleash_clock::now();
    let running = pool.inner().ledger().running_for(Survey::SLOW, now);
    let slow = pool.inner().survey.times().usual.note(running, now);
    let apps = pool.inner().ledger().slow_apps();
    if !slow.is_empty() || !apps.is_empty() {
        tables(pool, conn, &slow, apps).await?;
    }
    Ok(())
}

fn rows_of(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = &SimpleQueryRow> {
    messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

fn answer(row: &SimpleQueryRow) -> Option<(i32, Waiting)> {
    let pid = row.get(0)?.parse().ok()?;
    // "The Statistics Collector", table of wait event types; null while it runs.
    let wait = match row.get(1) {
        None => Wait::Running,
        Some("Lock") => Wait::Lock,
        Some("IO") => Wait::Io,
        Some("Client") => Wait::Client,
        Some(_) => Wait::Other,
    };
    let blocked_by = row.get(3).unwrap_or("").split(',').filter_map(|pid| pid.parse().ok()).collect();
    Some((pid, Waiting { wait, event: row.get(2).map(Arc::from), blocked_by }))
}

/// Twenty tables by what was read of them from end to end.
const TABLES: &str = "SELECT schemaname || '.' || relname, seq_scan, seq_tup_read, n_live_tup, \
    seq_tup_read / greatest(1, extract(epoch FROM pg_catalog.clock_timestamp() - coalesce((SELECT stats_reset FROM \
    pg_catalog.pg_stat_database WHERE datname = pg_catalog.current_database()), pg_catalog.pg_postmaster_start_time()))) \
    FROM pg_catalog.pg_stat_user_tables WHERE seq_scan > 0 ORDER BY seq_tup_read DESC LIMIT 20";

/// Looks which tables are read far more than usual while the statements of `apps` and those of `slow` take long.
async fn tables(
    pool: &WatchedPool,
    conn: &ServerConn,
    slow: &[Running],
    apps: Vec<String>,
) -> Result<(), String> {
    let survey = &pool.inner().survey;
    let now = pgleash_clock::now();
    if survey.times().tables.as_ref().is_some_and(|(asked, _)| now.since(*asked) < Survey::TABLES) {
        return Ok(());
    }
    let rows = pool.inner().probe.query(conn, TABLES).await?;
    let read: HashMap<String, Table> = rows_of(&rows).filter_map(table).collect();
    let (apps, statements) = culprits(slow, apps);
    let mut times = survey.times();
    let before = times.tables.replace((now, read.clone()));
    // Samples of another slow hour say nothing about this one.
    let Some((then, before)) = before.filter(|(then, _)| now.since(*then) < 4 * Survey::TABLES) else {
        return Ok(());
    };
    times.told.retain(|_, told| now.since(*told) < Survey::AGAIN);
    for (name, table) in read {
        let Some(known) = before.get(&name) else { continue };
        let (Some(found), usual) = (table.grew(known, now.since(then)), known.usual) else { continue };
        if times.told.insert(name.clone(), now).is_none() {
            pool.inner().sink.emit(Event::MissingIndexSuspected {
                pool: pool.key().clone(),
                table: name,
                scans_per_second: found.0,
                rows_read_per_second: found.1,
                usual_rows_read_per_second: usual,
                apps: apps.clone(),
                statements: statements.clone(),
            });
        }
    }
    Ok(())
}

/// Whose statements are slow, and which: at most five of each.
fn culprits(slow: &[Running], mut apps: Vec<String>) -> (Vec<String>, Vec<String>) {
    const MOST: usize = 5;
    apps.extend(slow.iter().map(|statement| statement.app.clone()));
    let mut statements: Vec<_> = slow.iter().map(|statement| statement.fingerprint.clone()).collect();
    for all in [&mut apps, &mut statements] {
        all.sort_unstable();
        all.dedup();
        all.truncate(MOST);
    }
    (apps, statements)
}

fn table(row: &SimpleQueryRow) -> Option<(String, Table)> {
    let number = |n| row.get(n).and_then(|text| text.parse::<f64>().ok());
    let table = Table {
        scans: number(1)?,
        rows_read: number(2)?,
        live_rows: number(3).unwrap_or(0.0),
        usual: number(4)?,
    };
    Some((row.get(0)?.to_owned(), table))
}

impl Table {
    /// Rows that make a table large, and a second's reading of it worth a word; and how much more is far more.
    const LARGE: f64 = 10_000.0;
    const TIMES: f64 = 3.0;

    /// Scans and rows read in a second since `before`, if these are far more than usual and of a large table.
    fn grew(&self, before: &Table, passed: Duration) -> Option<(f64, f64)> {
        let seconds = passed.as_secs_f64().max(0.001);
        let (scans, rows) =
            ((self.scans - before.scans) / seconds, (self.rows_read - before.rows_read) / seconds);
        (self.live_rows >= Self::LARGE && rows >= Self::LARGE && rows > Self::TIMES * before.usual)
            .then_some((scans, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_table_that_is_read_far_more_than_usual_is_suspected() {
        let grown = |scans, rows_read, live_rows, usual| {
            let before = Table { scans: 10.0, rows_read: 1e6, live_rows: 1e5, usual };
            let after = Table { scans, rows_read, live_rows, ..before };
            after.grew(&before, Duration::from_secs(5)).is_some()
        };
        assert!(grown(60.0, 6e6, 1e5, 100.0));
        assert!(!grown(60.0, 6e6, 500.0, 100.0), "a small table is read from end to end rightly");
        assert!(!grown(60.0, 6e6, 1e5, 1e6), "as ever");
        assert!(!grown(11.0, 1e6 + 100.0, 1e5, 0.0), "hardly");
        assert!(!grown(1.0, 0.0, 1e5, 0.0), "after a reset of the statistics");
    }

    #[test]
    fn questions_are_spaced_and_one_at_a_time() {
        let survey = Survey::default();
        assert!(survey.begins(Moment::from_secs(10)));
        assert!(!survey.begins(Moment::from_secs(12)), "the first is not answered");
        survey.asking.store(false, Ordering::Release);
        assert!(survey.begins(Moment::from_secs(12)));
        survey.asking.store(false, Ordering::Release);
        assert!(!survey.begins(Moment::from_nanos(12_900_000_000)));
    }
}
