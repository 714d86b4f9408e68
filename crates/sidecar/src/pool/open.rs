//! Opens connections for the pool and enters their beginning and their end into the ledger.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use parking_lot::Mutex;
use pgleash_core::{ConnId, Event};
use tokio::task::JoinHandle;

use crate::pool::defaults;
use crate::pool::state::{DELIVERED, Inner};
use crate::upstream::connector::{Dialer, Target, pool_gone};
use crate::upstream::server_conn::ServerConn;

static NEXT_CONN: AtomicU64 = AtomicU64::new(1);

/// What opens connections, with a switch in them, and bounds them. The idle ones are on the idle connections, not here.
pub(crate) fn deadpool(inner: Weak<Inner>, target: &Target, size: usize) -> Pool {
    let config = target.postgres.clone();
    let open = move || {
        let inner = inner.clone();
        Box::pin(async move { open(inner).await }) as _
    };
    let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_connect(config, Dialer { open }, manager);
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .build()
        .expect("no timeouts are configured, so none lacks a runtime")
}

/// Opens one connection, enters it into the ledger, and leaves it for the caller of `get`.
async fn open(inner: Weak<Inner>) -> Result<(tokio_postgres::Client, JoinHandle<()>), tokio_postgres::Error> {
    let began = pgleash_clock::now();
    let life = Arc::new(Mutex::new(Life::Dialling));
    let target = match inner.upgrade() {
        Some(inner) => {
            inner.ledger().dialling(began);
            inner.target.load_full()
        }
        None => return Err(pool_gone().await),
    };
    let guard = LifeGuard { inner: inner.clone(), life: Arc::clone(&life) };
    let dialled = target.dial_aside(guard).await?;
    if let Some(inner) = inner.upgrade() {
        let found = defaults::found(&dialled.client, &inner).await?;
        let now = pgleash_clock::now();
        let id = ConnId(NEXT_CONN.fetch_add(1, Ordering::Relaxed));
        let expires = now + jittered(inner.policy.load().max_lifetime);
        let conn = Arc::new(ServerConn::new(id, &dialled, target, found, (expires, now)));
        inner.welcomed_with(&conn.parameters);
        let mut life = life.lock();
        if matches!(*life, Life::Dialling) {
            inner.ledger().opened(id, conn.backend_pid, expires, now);
            *life = Life::Open(Arc::clone(&conn));
            inner.sink.emit(Event::ConnectionOpened {
                pool: inner.key.clone(),
                conn: id,
                backend_pid: conn.backend_pid,
                connect_seconds: now.since(began).as_secs_f64(),
            });
        }
        drop(life);
        drop(DELIVERED.try_with(|permit| permit.replace(Some(conn))));
    }
    Ok((dialled.client, dialled.task))
}

/// 0 to 10 % off, so that connections opened together do not end together.
fn jittered(lifetime: Duration) -> Duration {
    lifetime.mul_f64(1.0 - rand::random_range(0.0..0.1))
}

/// Where a connection is in its life; its end is told once, and only after its beginning.
enum Life {
    /// Not in the ledger. Goes to `Open`, or to `Ended` if it dies first.
    Dialling,
    /// In the ledger.
    Open(Arc<ServerConn>),
    /// Out of it.
    Ended,
}

/// Lives in the connection's task; its end is the connection's end.
struct LifeGuard {
    inner: Weak<Inner>,
    life: Arc<Mutex<Life>>,
}

impl Drop for LifeGuard {
    fn drop(&mut self) {
        let mut life = self.life.lock();
        let before = std::mem::replace(&mut *life, Life::Ended);
        let Some(inner) = self.inner.upgrade() else { return };
        let Life::Open(conn) = before else { return inner.ledger().not_opened(pgleash_clock::now()) };
        let event = inner.ledger().closed(conn.id, conn.close_reason(), pgleash_clock::now());
        inner.roster().remove(&conn.id);
        if let Some(event) = event {
            inner.sink.emit(event);
        }
        inner.attention.notify_one();
    }
}
