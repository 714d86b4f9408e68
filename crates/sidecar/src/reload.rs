//! Reads the configuration again: on SIGHUP, when its file changes, or when it is asked to.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pgleash_core::Event;
use tokio::signal::unix::Signal;

use crate::config;
use crate::config::Sources;
use crate::config::reloadable::{Change, file_of};
use crate::pool::state::WatchedPool;
use crate::process::Hub;

/// Knows where the configuration comes from.
pub(crate) struct Reloader {
    hub: Arc<Hub>,
    sources: Sources,
    /// One at a time.
    turn: Mutex<()>,
}

/// What the system says of a file: it differs when the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Reloader {
    /// How often the file is looked at. A change counts when it is found unchanged at the next look: who
    /// writes a file may take a moment.
    const LOOK: Duration = Duration::from_millis(500);

    /// For the process that `hub` is.
    pub(crate) fn new(hub: Arc<Hub>, sources: Sources) -> Arc<Self> {
        Arc::new(Self { hub, sources, turn: Mutex::new(()) })
    }

    /// Reads the configuration and puts in force what may change; all of it or, if anything is wrong,
    /// nothing. Tells what came of it. Reads files: not for the data path.
    ///
    /// # Errors
    /// All that is wrong.
    pub(crate) fn reload(&self) -> Result<Change, Vec<String>> {
        let _turn = self.turn.lock();
        let read = config::load(&self.sources)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>());
        let applied = read.and_then(|read| {
            let change = self.hub.config.load().adopt(&read.config);
            self.hub.apply(&change.config).map_err(|error| vec![error.to_string()])?;
            self.hub.pools().iter().for_each(WatchedPool::doubt_defaults);
            Ok(change)
        });
        self.hub.sink.emit(match &applied {
            Ok(Change { changed, needs_restart, .. }) => {
                Event::Reloaded { changed: changed.clone(), needs_restart: needs_restart.clone() }
            }
            Err(problems) => Event::ReloadRefused { problems: problems.clone() },
        });
        applied
    }

    /// Reloads on each SIGHUP and change of the file, for ever.
    pub(crate) async fn watch(self: Arc<Self>, mut hangup: Signal) {
        let mut seen = self.stamp().await;
        let mut settled = true;
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    seen = self.stamp().await;
                    settled = true;
                    self.reload_aside().await;
                }
                () = tokio::time::sleep(Self::LOOK) => {
                    let now = self.stamp().await;
                    let quiet = now == seen;
                    if quiet && !settled {
                        self.reload_aside().await;
                    }
                    settled = quiet;
                    seen = now;
                }
            }
        }
    }

    async fn reload_aside(self: &Arc<Self>) {
        let reloader = Arc::clone(self);
        // What came of it has been told.
        let _ = tokio::task::spawn_blocking(move || drop(reloader.reload())).await;
    }

    async fn stamp(self: &Arc<Self>) -> Option<Stamp> {
        let reloader = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let file = fs::metadata(file_of(&reloader.sources)?).ok()?;
            let modified = (file.mtime(), file.mtime_nsec());
            Some(Stamp { inode: file.ino(), length: file.len(), modified })
        })
        .await
        .ok()
        .flatten()
    }
}
