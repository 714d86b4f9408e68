//! Pause and resume: whether new checkouts go on or wait.

use tokio::sync::watch;

/// What new checkouts do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// They go on.
    Open,
    /// They wait.
    Paused,
    /// They are turned away: what was paused is being drained.
    Over,
}

/// Shared by all pools of a process.
#[derive(Debug)]
pub(crate) struct PauseGate(watch::Sender<Flow>);

impl PauseGate {
    /// What new checkouts do.
    pub(crate) fn flow(&self) -> Flow {
        *self.0.borrow()
    }

    /// New checkouts wait. False if it was so before, or the drain has begun.
    pub(crate) fn pause(&self) -> bool {
        self.turn(Flow::Open, Flow::Paused)
    }

    /// They go on. False if they were not waiting.
    pub(crate) fn resume(&self) -> bool {
        self.turn(Flow::Paused, Flow::Open)
    }

    /// The drain has begun: whoever waits behind the pause gate has nothing to finish.
    pub(crate) fn drain(&self) {
        self.turn(Flow::Paused, Flow::Over);
    }

    /// Resolves when they do not wait. Cancel safe.
    pub(crate) async fn changed(&self) -> Flow {
        let mut flow = self.0.subscribe();
        // The sender lives as long as we do.
        flow.wait_for(|flow| *flow != Flow::Paused).await.map_or(Flow::Over, |flow| *flow)
    }

    fn turn(&self, from: Flow, to: Flow) -> bool {
        self.0.send_if_modified(|flow| {
            let turns = *flow == from;
            if turns {
                *flow = to;
            }
            turns
        })
    }
}

impl Default for PauseGate {
    fn default() -> Self {
        Self(watch::channel(Flow::Open).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_ends_a_pause_for_good() {
        let pause_gate = PauseGate::default();
        pause_gate.drain();
        assert_eq!(pause_gate.flow(), Flow::Open, "nobody waits: those at work may finish");
        assert!(pause_gate.pause() && !pause_gate.pause());
        pause_gate.drain();
        assert_eq!(pause_gate.flow(), Flow::Over);
        assert!(!pause_gate.resume() && !pause_gate.pause());
    }
}
