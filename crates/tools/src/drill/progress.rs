//! What is shown while the drill runs: a bar on a terminal, a line for each phase elsewhere.

use std::cell::Cell;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::drill::app::Journal;
use crate::drill::report::Sample;
use crate::drill::scenario::{Phase, Scenario};

/// The progress of one run, on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    told: Cell<Option<Phase>>,
    settling: Cell<bool>,
}

impl Progress {
    /// Begins the display of a run.
    pub fn begin(name: &str, scenario: &Scenario) -> Self {
        let bar = ProgressBar::new(millis(scenario.length()));
        let style = ProgressStyle::with_template("{prefix}  {bar:30}  {msg}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        bar.set_prefix(format!("{name:20}"));
        if bar.is_hidden() {
            eprintln!("{name}");
        }
        Self { bar, told: Cell::new(None), settling: Cell::new(false) }
    }

    /// Shows the state of the run.
    pub fn show(
        &self,
        scenario: &Scenario,
        sample: &Sample,
        journal: &Journal,
        found: usize,
        reclaimed: usize,
    ) {
        let minute = scenario.minute(sample.at);
        let phase = scenario.kind.phase(minute);
        let (paid, _, failed) = journal.counts();
        let state = format!(
            "minute {:4.1} {:13}  pool {:3.0} %  {paid} paid  {failed} failed  leaks: {} planted, {found} found, {reclaimed} taken back",
            minute.min(crate::drill::scenario::MINUTES),
            if self.settling.get() { "settling" } else { phase.as_str() },
            sample.utilization * 100.0,
            journal.planted.len(),
        );
        self.bar.set_position(millis(sample.at.min(scenario.length())));
        self.bar.set_message(state.clone());
        if self.bar.is_hidden() && self.told.replace(Some(phase)) != Some(phase) {
            eprintln!("  {state}");
        }
    }

    /// The scenario is over; the last leaks are waited for.
    pub fn settling(&self) {
        self.settling.set(true);
        self.told.set(None);
    }

    /// Ends the display and leaves its last state to be read.
    pub fn end(self) {
        self.bar.abandon();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
