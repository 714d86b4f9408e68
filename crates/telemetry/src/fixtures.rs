//! An incident as values, for tests.

use std::sync::Arc;

use pgleash_core::{
    Channel, CheckoutId, CheckoutSnapshot, CloseReason, ConnCounts, ConnId, ConnState, Credential, Delivery,
    Event, Evidence, FlowState, Grounds, Holder, InForce, Limits, Pin, PoolKey, PoolSnapshot, Reason,
    RecycleAction, RecycleOutcome, Refusal, Resolution, SessionId, Snapshot, Suppression, TopHolder,
    Widening,
};

/// The pool that has the leaks.
pub fn payments() -> PoolKey {
    PoolKey::new("payments", "app")
}

/// Client session number `session` of application `app` in [`payments`].
pub fn holder(session: u32, app: &str) -> Arc<Holder> {
    Arc::new(Holder {
        session: SessionId(session),
        app: app.to_owned(),
        user: "app".to_owned(),
        database: "payments".to_owned(),
        client: format!("10.1.4.{}:{}", 10 + session % 7, 40_000 + session * 13),
    })
}

/// What is known of checkout 4711, which `holder(1042, "checkout-api")` leaked.
pub fn evidence() -> Evidence {
    Evidence {
        checkout: CheckoutId(4711),
        holder: holder(1042, "checkout-api"),
        backend_pid: 23_117,
        age_seconds: 21.5,
        idle_seconds: 21.25,
        limit_seconds: 30.0,
        route: None,
        statement: None,
        trace: None,
        waits_for: None,
        blocked_by: Vec::new(),
        grounds: None,
    }
}

/// On what a limit of 6.3 s is founded.
pub fn grounds() -> Grounds {
    Grounds {
        pauses_seen: 4112,
        worst_pause_seconds: 2.1,
        later_over: 412,
        later_idle: 3,
        p_value: 0.0096,
        ceiling_seconds: 30.0,
    }
}

/// Every kind of event once, in the order of an incident.
pub fn events() -> Vec<Event> {
    let pool = payments();
    let conn = ConnId(9);
    let mut events = vec![
        started(),
        Event::PoolOpened { pool: pool.clone(), size: 20 },
        Event::UpstreamFailed {
            pool: pool.clone(),
            sqlstate: "08006".to_owned(),
            detail: "connection refused".to_owned(),
        },
        Event::UpstreamRecovered { pool: pool.clone(), down_seconds: 2.5, attempts: 6 },
        Event::ConnectionOpened { pool: pool.clone(), conn, backend_pid: 23_117, connect_seconds: 0.0042 },
        Event::CheckedOut { pool: pool.clone(), waited_seconds: 0.0003 },
        Event::CheckedIn { pool: pool.clone(), held_seconds: 0.012 },
        Event::LeakDetected {
            pool: pool.clone(),
            reason: Reason::IdleInTransaction,
            evidence: Evidence { age_seconds: 15.25, idle_seconds: 15.0, ..evidence() },
        },
        learned(&pool),
        Event::ExhaustionForeseen {
            pool: pool.clone(),
            in_seconds: 540.0,
            stale: 12,
            holders: vec![top_holder()],
        },
        Event::ExhaustionAverted { pool: pool.clone(), stale: 0 },
        Event::CheckoutTimeout {
            pool: pool.clone(),
            waited_seconds: 5.0,
            diagnosis: "20 of 20 held, 11 stale, oldest 29 s, most by checkout-api".to_owned(),
            client: "10.1.4.12:40966".to_owned(),
        },
        suppressed(&pool),
        recycled(&pool, conn),
        Event::LeakResolved {
            pool: pool.clone(),
            reason: Reason::IdleInTransaction,
            resolution: Resolution::Reclaimed,
            left_alone: None,
            evidence: Evidence { age_seconds: 30.25, idle_seconds: 30.0, ..evidence() },
        },
        Event::ReclaimRegretted { pool: pool.clone(), evidence: evidence(), after_seconds: 1.5 },
        refused(),
        Event::CredentialsReloaded { what: Credential::Users, detail: "12 users".to_owned() },
        kept(),
        Event::LabelFolded { label: "app" },
        Event::Notified { channel: Channel::Slack, outcome: Delivery::Sent },
        Event::ConnectionClosed {
            pool,
            conn,
            backend_pid: 23_117,
            reason: CloseReason::MaxLifetime,
            age_seconds: 1754.0,
            uses: 90_412,
        },
    ];
    events.extend(slow());
    events.extend(changes());
    events.extend(notifications());
    events.extend([
        Event::Draining { clients: 31, limit_seconds: 30.0 },
        Event::Stopped { drained: true, clients_cut: 0 },
    ]);
    events
}

/// What the server was asked about slow statements.
fn slow() -> [Event; 3] {
    [
        Event::MissingIndexSuspected {
            pool: payments(),
            table: "public.orders".to_owned(),
            scans_per_second: 12.5,
            rows_read_per_second: 1_250_000.0,
            usual_rows_read_per_second: 310.0,
            apps: vec!["checkout-api".to_owned()],
            statements: vec!["select * from orders where customer = $1".to_owned()],
        },
        Event::SurveyFailed { pool: payments(), detail: "no answer in time".to_owned() },
        Event::SurveyRecovered { pool: payments() },
    ]
}

/// Who has the most stale checkouts.
pub fn top_holder() -> TopHolder {
    TopHolder {
        app: "checkout-api".to_owned(),
        route: Some("POST /pay".into()),
        stale: 3,
        stale_seconds: 68.5,
    }
}

/// A suspicion by what was usual, which has proved wrong.
fn learned(pool: &PoolKey) -> Event {
    Event::LimitWidened {
        pool: pool.clone(),
        app: "checkout-api".to_owned(),
        route: Some("POST /pay".into()),
        limit: Reason::IdleInTransaction,
        because: Widening::Returned,
        from_seconds: 6.3,
        to_seconds: 24.6,
    }
}

fn notifications() -> [Event; 3] {
    let (channel, receiver) = (Channel::Slack, "https://hooks.slack.test/***".to_owned());
    [
        Event::NotificationsFailing { channel, receiver, detail: "HTTP status 503".to_owned() },
        Event::NotificationsRecovered { channel, failed_seconds: 12.5 },
        Event::TestNotification,
    ]
}

fn started() -> Event {
    Event::Started {
        version: "0.1.0",
        listen: "127.0.0.1:6432".to_owned(),
        admin: "127.0.0.1:9632".to_owned(),
        control: None,
        action: "reclaim",
        limits: InForce {
            idle_in_transaction_seconds: 30.0,
            idle_session_seconds: 600.0,
            floor_seconds: 5.0,
            budget_share: 0.25,
            budget_seconds: 60.0,
        },
    }
}

fn suppressed(pool: &PoolKey) -> Event {
    Event::ReclaimSuppressed {
        pool: pool.clone(),
        reason: Reason::IdleInTransaction,
        because: Suppression::Budget,
        dry_run: false,
        evidence: evidence(),
    }
}

fn recycled(pool: &PoolKey, conn: ConnId) -> Event {
    Event::Recycled {
        pool: pool.clone(),
        conn,
        checkout: CheckoutId(4711),
        backend_pid: 23_117,
        action: RecycleAction::Reset,
        outcome: RecycleOutcome::Reissued,
        elapsed_seconds: 0.0031,
        detail: String::new(),
    }
}

/// What an administrator changes.
fn changes() -> [Event; 6] {
    [
        Event::Reloaded { changed: vec!["pool.size: 20 -> 40".to_owned()], needs_restart: vec!["listen"] },
        Event::ReloadRefused { problems: vec!["pgleash.toml:3: pool.size = 0 is out of range".to_owned()] },
        Event::Paused { checkouts: 3 },
        Event::Resumed { waiting: 12 },
        Event::TookOver { listen: "127.0.0.1:6432".to_owned() },
        Event::HandedOver { clients: 31, limit_seconds: 30.0 },
    ]
}

fn refused() -> Event {
    Event::ClientRefused {
        reason: Refusal::Protocol,
        client: "10.1.4.99:51000".to_owned(),
        detail: "the first packet says 1195725856 bytes; at most 10000 are allowed".to_owned(),
    }
}

fn kept() -> Event {
    Event::CredentialsKept {
        what: Credential::Certificate,
        detail: "tls.key = /etc/pgleash/tls.key: it is not the key of the certificate in tls.cert".to_owned(),
    }
}

/// A full pool with leaks, and a quiet one.
pub fn incident() -> Snapshot {
    Snapshot {
        version: "0.1.0",
        uptime_seconds: 3725.5,
        mode: "transaction",
        config_hash: "5d1f0c2a9b7e".to_owned(),
        action: "reclaim",
        enforcing: true,
        draining: false,
        flow: FlowState::Open,
        observation_age_seconds: 0.25,
        observed_at_unix_seconds: 1_767_323_045.5,
        clients: 31,
        clients_max: 1000,
        pools: vec![
            PoolSnapshot {
                connections: ConnCounts { idle: 0, active: 2, idle_in_transaction: 5, held: 2, recycling: 1 },
                utilization_ratio: 1.0,
                utilization_peak_ratio: 1.0,
                waiting: 3,
                oldest_wait_seconds: 1.75,
                oldest_checkout_seconds: 29.0,
                oldest_connection_seconds: 1754.0,
                stale: stale([3, 1, 0, 1]),
                overdue: 1,
                top_holders: vec![top_holder()],
                stale_growth_per_second: Some(0.07),
                exhaustion_forecast_seconds: Some(42.0),
                opened: 61,
                closed: 51,
                checkouts: 90_412,
                checkins: 90_402,
                holders: leaking_holders(),
                ..quiet_pool(payments(), 10)
            },
            quiet_pool(PoolKey::new("reports", "analyst"), 10),
        ],
    }
}

/// A pool of `size` in which nobody holds anything.
pub fn quiet_pool(pool: PoolKey, size: usize) -> PoolSnapshot {
    PoolSnapshot {
        pool,
        size,
        connections: ConnCounts { idle: 2, ..ConnCounts::default() },
        utilization_ratio: 0.0,
        utilization_peak_ratio: 0.2,
        waiting: 0,
        oldest_wait_seconds: 0.0,
        oldest_checkout_seconds: 0.0,
        oldest_connection_seconds: 94.0,
        stale: stale([0; 4]),
        overdue: 0,
        top_holders: Vec::new(),
        stale_growth_per_second: None,
        exhaustion_forecast_seconds: None,
        limits: Limits {
            idle_in_transaction: 30.0,
            idle_session: 600.0,
            max_lifetime: 1800.0,
            idle_timeout: 600.0,
            wait_timeout: 5.0,
        },
        opened: 2,
        closed: 0,
        checkouts: 17,
        checkins: 17,
        holders: Vec::new(),
    }
}

fn stale(counts: [usize; 4]) -> Vec<(Reason, usize)> {
    let judged =
        [Reason::IdleInTransaction, Reason::IdleSession, Reason::ProtocolWedge, Reason::SlowStatement];
    judged.into_iter().zip(counts).collect()
}

fn leaking_holders() -> Vec<CheckoutSnapshot> {
    let suspect = Some(Reason::IdleInTransaction);
    let mut holders = vec![
        checkout(1, holder(1042, "checkout-api"), ConnState::IdleInTransaction, (29.0, 28.9), suspect),
        checkout(2, holder(1043, "checkout-api"), ConnState::IdleInTransaction, (24.0, 23.5), suspect),
        checkout(3, holder(1051, "checkout-api"), ConnState::IdleInTransaction, (16.5, 16.1), suspect),
        checkout(
            4,
            holder(1007, "nightly \"batch\" 🐘"),
            ConnState::Held,
            (412.0, 401.0),
            Some(Reason::IdleSession),
        ),
        checkout(5, holder(1060, "ledger-worker"), ConnState::Active, (0.8, 0.0), None),
        checkout(
            6,
            holder(1061, "ledger-worker"),
            ConnState::Active,
            (44.0, 44.0),
            Some(Reason::SlowStatement),
        ),
        checkout(7, holder(1064, "checkout-api"), ConnState::IdleInTransaction, (0.21, 0.004), None),
        checkout(8, holder(1065, ""), ConnState::Held, (61.0, 3.2), None),
        checkout(9, holder(1066, "checkout-api"), ConnState::IdleInTransaction, (0.09, 0.001), None),
        checkout(10, holder(1070, "checkout-api"), ConnState::Recycling, (0.03, 0.001), None),
    ];
    holders[7].pinned = Some(Pin::Listen);
    holders[7].pinned_seconds = Some(holders[7].age_seconds);
    holders[7].pinned_by = Some("listen jobs".into());
    holders[7].overdue = true;
    holders[1].route = Some("POST /pay".into());
    holders[1].statement = Some("update accounts set balance = balance - ? where id = $1".into());
    (holders[1].limit_seconds, holders[1].grounds) = (6.3, Some(grounds()));
    holders[5].why = "statement in flight for 44 s; slow, not a leak".to_owned();
    holders[5].next = "reported; never taken back".to_owned();
    holders
}

fn checkout(
    id: u64,
    holder: Arc<Holder>,
    phase: ConnState,
    (age, idle): (f64, f64),
    suspect: Option<Reason>,
) -> CheckoutSnapshot {
    let limit = if phase == ConnState::Held { 600.0 } else { 30.0 };
    CheckoutSnapshot {
        id: CheckoutId(id),
        holder,
        route: None,
        waits_for: None,
        blocked_by: Vec::new(),
        blocks: 0,
        statement: None,
        trace: None,
        limit_seconds: limit,
        grounds: None,
        phase,
        age_seconds: age,
        idle_seconds: idle,
        waited_seconds: 0.0004,
        backend_pid: 23_100 + i32::try_from(id).unwrap_or_default(),
        connection_age_seconds: 900.0 + age,
        connection_uses: 1000 + id,
        pinned: None,
        pinned_seconds: None,
        pinned_by: None,
        overdue: false,
        suspect,
        why: match suspect {
            Some(_) => format!("nothing in flight, idle {idle:.1} s of {limit:.0} s"),
            None => "in use".to_owned(),
        },
        next: match suspect {
            Some(_) => format!("taken back in {:.1} s", limit - idle),
            None => format!("suspect once idle for {:.0} s", limit / 2.0),
        },
    }
}
