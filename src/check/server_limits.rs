//! Limits of the server that are tighter than ours, and one that is wider.

use std::time::Duration;

use pgleash_core::Policy;
use tokio_postgres::{Client, Error};

use crate::check::Report;

/// Whether server, database and role let the pool have its size.
pub(super) async fn ask_capacity(client: &Client, size: usize, report: &mut Report) -> Result<(), Error> {
    let row = client
        .query_one(
            "SELECT current_setting('max_connections')::int8,
                    current_setting('superuser_reserved_connections')::int8
                      + coalesce(current_setting('reserved_connections', true)::int8, 0),
                    (SELECT sum(numbackends)::int8 - 1 FROM pg_stat_database),
                    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user)::int8,
                    (SELECT datconnlimit FROM pg_database WHERE datname = current_database())::int8",
            &[],
        )
        .await?;
    let (max, reserved, used): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    let limits: [(&str, Option<i64>); 2] = [("the role", row.get(3)), ("the database", row.get(4))];
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let open = max - reserved;
    let sum =
        format!("pool.size {size}, max_connections {max} less {reserved} reserved, {used} in use by others");
    if size > open {
        report.fail(
            "connections",
            format!("{sum}: the pool can never be filled"),
            format!("lower pool.size to {open} or less"),
        );
    } else if size + used > open {
        report.warn(
            "connections",
            format!("{sum}: there is no room now for the whole pool"),
            "move the others behind pgleash, lower pool.size, or raise max_connections",
        );
    } else {
        report.ok("connections", sum);
    }
    for (whose, limit) in limits {
        if let Some(limit) = limit.filter(|limit| (0..size).contains(limit)) {
            report.fail(
                "connections",
                format!("pool.size {size} is over the connection limit of {whose}, {limit}"),
                format!("lower pool.size to {limit}, or raise the limit with ALTER"),
            );
        }
    }
    Ok(())
}

/// What the server ends by itself it should end after us, or we do not see why; and what it lets run should not
/// be slow to us.
pub(super) async fn ask_timeouts(client: &Client, policy: &Policy, report: &mut Report) -> Result<(), Error> {
    let rows = client
        .query(
            "SELECT name, setting::int8 FROM pg_settings
             WHERE name IN ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'statement_timeout',
                            'transaction_timeout') AND setting <> '0'
             ORDER BY name",
            &[],
        )
        .await?;
    let mut bad = 0;
    for row in rows {
        let (name, millis): (&str, i64) = (row.get(0), row.get(1));
        let theirs = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
        if let Some((what, todo)) = judge(name, theirs, policy) {
            report.warn("timeouts", what, todo);
            bad += 1;
        }
    }
    if bad == 0 {
        report.ok("timeouts", "no timeout of the server crosses a limit of pgleash");
    }
    Ok(())
}

/// What is wrong with a timeout of the server, and what to do.
fn judge(name: &str, theirs: Duration, policy: &Policy) -> Option<(String, String)> {
    let shown = humantime::format_duration(theirs);
    if name == "statement_timeout" {
        let ours = policy.slow_statement();
        return (ours < theirs).then(|| {
            let limit = humantime::format_duration(ours);
            let what = format!(
                "the server's statement_timeout ({shown}) is longer than leaks.idle_in_transaction ({limit}): a \
                 statement that it allows is reported as slow"
            );
            let todo = format!("raise leaks.idle_in_transaction to {shown}, or lower statement_timeout");
            (what, todo)
        });
    }
    let (ours, key) = match name {
        "idle_session_timeout" => {
            (policy.idle_timeout.max(policy.idle_session), "pool.idle_timeout and leaks.idle_session")
        }
        _ => (policy.idle_in_transaction, "leaks.idle_in_transaction"),
    };
    (theirs <= ours).then(|| {
        let what = format!("the server's {name} ({shown}) acts before pgleash does");
        (what, format!("set {key} below it, or raise it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn todo(name: &str, seconds: u64) -> Option<String> {
        judge(name, Duration::from_secs(seconds), &Policy::default()).map(|(_, todo)| todo)
    }

    #[test]
    fn a_timeout_that_acts_first_is_warned_of() {
        for name in ["idle_in_transaction_session_timeout", "transaction_timeout"] {
            assert_eq!(
                todo(name, 30).as_deref(),
                Some("set leaks.idle_in_transaction below it, or raise it")
            );
            assert_eq!(todo(name, 31), None);
        }
        assert!(todo("idle_session_timeout", 600).is_some_and(|todo| todo.contains("pool.idle_timeout")));
        assert_eq!(todo("idle_session_timeout", 601), None);
    }

    #[test]
    fn a_statement_that_the_server_allows_should_not_be_slow() {
        assert_eq!(todo("statement_timeout", 30), None);
        assert!(todo("statement_timeout", 31).is_some_and(|todo| todo.contains("to 31s")));
    }
}
