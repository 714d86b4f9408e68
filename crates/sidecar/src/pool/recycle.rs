//! Brings home what did not come home clean: cancel, roll back, reset, verify, or close.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pgleash_core::{CloseReason, Event, Policy, RecycleAction, RecycleOutcome};
use pgleash_wire::ConnActivity;
use pgleash_wire::frame::{Cut, FrameError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::pool::describe;
use crate::pool::job::{Job, Lease, Plan};
use crate::pool::state::{Inner, WatchedPool};
use crate::upstream::server_conn::ServerConn;
use crate::upstream::wire_lease::Wire;

/// Cleans what is sent, at most one job for each slot at a time, until the pool is gone.
pub(crate) async fn run(pool: Weak<Inner>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv() => match (job, pool.upgrade()) {
                (Some(job), Some(pool)) => drop(running.spawn(clean(WatchedPool::from_inner(pool), job))),
                _ => break,
            },
            Some(_) = running.join_next() => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn clean(pool: WatchedPool, job: Job) {
    let began = pgleash_clock::now();
    let Job { conn, checkout, lease, wire, plan } = job;
    let action = match plan {
        Plan::Reset => RecycleAction::Reset,
        Plan::Cancel => RecycleAction::Cancel,
        Plan::Close | Plan::Lost => RecycleAction::Close,
    };
    let unwanted = pool.keeps(&conn, began).err();
    let cleaned = match (plan, wire) {
        (Plan::Reset, _) if unwanted.is_some() => {
            unwanted.into_iter().for_each(|reason| conn.closing(reason));
            Err(format!("not wanted any more: {}", unwanted.map_or("", CloseReason::as_str)))
        }
        (Plan::Lost, _) => Err("the server is gone".to_owned()),
        (Plan::Reset | Plan::Cancel, wire) if conn.loaded.load(Ordering::Relaxed) => {
            stop(&conn, wire).await;
            Err("a client has loaded a library".to_owned())
        }
        (Plan::Close, wire) => {
            stop(&conn, wire).await;
            Err("closed in mid-protocol".to_owned())
        }
        (_, None) => Err("the wire was lost".to_owned()),
        (Plan::Reset, Some(wire)) => reset(&conn, &lease, wire).await,
        (Plan::Cancel, Some(wire)) => match cancel(&conn, wire).await {
            Ok(wire) => reset(&conn, &lease, wire).await,
            Err(why) => Err(why),
        },
    };
    let (outcome, detail) = match cleaned {
        Ok(()) => {
            pool.ledger().recycled(conn.id, pgleash_clock::now());
            pool.inner().idle_conns.put(lease.pooled);
            (RecycleOutcome::Reissued, String::new())
        }
        Err(why) => {
            pool.discard(lease.pooled, CloseReason::Unclean);
            (pool.inner().probe.verify_gone(&conn).await, why)
        }
    };
    pool.inner().sink.emit(Event::Recycled {
        pool: pool.key().clone(),
        conn: conn.id,
        checkout,
        backend_pid: conn.backend_pid,
        action,
        outcome,
        elapsed_seconds: pgleash_clock::now().since(began).as_secs_f64(),
        detail,
    });
    drop(lease.permit);
}

/// Ends whatever the server still does for a connection that is about to be closed: a backend notices
/// its client's end only when it reads or writes next. A cancel request needs no place among the
/// server's connections. One that fails is no harm: the probe looks at the backend next.
async fn stop(conn: &Arc<ServerConn>, wire: Option<Box<Wire>>) {
    if !wire.is_some_and(|wire| wire.protocol.may_query()) {
        let _ = conn.announce_cancel().send().await;
    }
}

/// Rolls back, discards all session state, and checks that the connection is quiet.
async fn reset(conn: &Arc<ServerConn>, lease: &Lease, mut wire: Box<Wire>) -> Result<(), String> {
    wire.prepared.forget_all();
    let in_transaction = wire.protocol.in_transaction();
    conn.wire_lease.give_back(wire);
    let resetting = async {
        while conn.has_cancel_in_flight() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if in_transaction {
            lease.pooled.object().batch_execute("ROLLBACK").await?;
        }
        lease.pooled.object().batch_execute("DISCARD ALL").await?;
        if conn.seeded.swap(false, Ordering::Relaxed) {
            let seed: f64 = rand::random_range(-1.0..1.0);
            lease.pooled.object().batch_execute(&format!("SELECT pg_catalog.setseed({seed})")).await?;
        }
        Ok(())
    };
    match tokio::time::timeout(Policy::RESET_DEADLINE, resetting).await {
        Err(_) => Err(format!("no reset within {:?}", Policy::RESET_DEADLINE)),
        Ok(Err(error)) => Err(format!("reset failed: {}", describe(&error))),
        Ok(Ok(())) if conn.is_tainted() => Err("a cancel request may still be on its way to it".to_owned()),
        Ok(Ok(())) if conn.wire_lease.is_quiet_at_home() => {
            conn.sequences_of.store(ServerConn::NOBODY, Ordering::Relaxed);
            conn.set_applied(&Arc::default());
            lease.pooled.object().statement_cache.clear();
            Ok(())
        }
        Ok(Ok(())) => Err("not quiet after the reset".to_owned()),
    }
}

/// Cancels the statement in flight and reads until the server has said all it had to say.
async fn cancel(conn: &Arc<ServerConn>, mut wire: Box<Wire>) -> Result<Box<Wire>, String> {
    let ending = async {
        conn.announce_cancel().send().await.map_err(|error| format!("cancel request failed: {error}"))?;
        while wire.protocol.conn_activity() == ConnActivity::InFlight || !wire.received.at_boundary() {
            read_some(&mut wire).await?;
        }
        Ok(())
    };
    match tokio::time::timeout(Policy::CANCEL_DEADLINE, ending).await {
        Err(_) => {
            Err(format!("the statement did not end within {:?} of its cancel", Policy::CANCEL_DEADLINE))
        }
        Ok(Err(why)) => Err(why),
        Ok(Ok(())) if wire.protocol.may_query() => Ok(wire),
        Ok(Ok(())) => Err("cancelled in mid-protocol".to_owned()),
    }
}

async fn read_some(wire: &mut Wire) -> Result<(), String> {
    use tokio::io::AsyncReadExt;
    discard_frames(wire).map_err(|error| error.to_string())?;
    if wire.protocol.conn_activity() != ConnActivity::InFlight && wire.received.at_boundary() {
        return Ok(());
    }
    match wire.io.read_buf(&mut wire.inbox).await {
        Ok(0) => Err("the server hung up".to_owned()),
        Ok(_) => discard_frames(wire).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Tells the pulse of what is in the inbox, and drops it.
fn discard_frames(wire: &mut Wire) -> Result<(), FrameError> {
    use bytes::Buf;
    loop {
        let taken = match wire.received.next(&wire.inbox, false, |tag| usize::from(tag == b'Z'))? {
            Cut::Frame(frame, taken) => {
                wire.protocol.received(frame.tag, frame.body.first().copied());
                taken
            }
            Cut::Body(_, taken) => taken,
            Cut::More => return Ok(()),
        };
        wire.inbox.advance(taken);
    }
}
