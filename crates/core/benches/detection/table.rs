//! The outcome, for people.

use std::fmt::Write;

use crate::Report;
use crate::sim::Score;
use crate::work::{Asks, Workload};

/// One thing that was asked for.
pub(crate) struct Goal {
    pub said: String,
    pub met: bool,
}

impl Report {
    fn ours(&self) -> &Score {
        &self.ruled[0].1
    }

    /// What was asked, and whether it was met.
    pub(crate) fn goals(&self, workload: &Workload) -> Vec<Goal> {
        let ours = self.ours();
        let goal = |met, said| Goal { said, met };
        let mut goals = vec![
            goal(
                ours.healthy_killed == 0,
                format!("{} healthy of {} taken", ours.healthy_killed, ours.checkouts),
            ),
            goal(ours.missed == 0, format!("{} of {} leaks missed", ours.missed, ours.leaks)),
        ];
        if workload.asks == Asks::Incident {
            let median = quantile(&ours.found, 0.5);
            goals.push(goal(median <= 10.0, format!("median delay {median:.1} s")));
            let lead = self.leads().into_iter().fold(f64::INFINITY, f64::min);
            goals.push(goal(lead >= 420.0, format!("forecast {lead:.0} s ahead at least")));
        } else {
            let foreseen = self.observed.first_forecast.iter().flatten().count();
            let leaks = self.observed.leaks > 0;
            goals.push(goal(
                leaks || foreseen == 0,
                format!("{foreseen} of {} foresaw exhaustion", self.seeds),
            ));
        }
        goals
    }

    /// How long before the pool would have been exhausted that was foreseen, for each trace in which it would.
    fn leads(&self) -> Vec<f64> {
        let Score { exhausted, first_forecast, .. } = &self.observed;
        let lead = |(full, seen): (&Option<f64>, &Option<f64>)| {
            full.map(|full| seen.map_or(0.0, |seen| full - seen))
        };
        exhausted.iter().zip(first_forecast).filter_map(lead).collect()
    }
}

/// The table of one workload.
pub(crate) fn of(workload: &Workload, report: &Report) -> String {
    let mut text = format!(
        "\n{}: {}\n{} traces of {:.0} min, pool of {}\n\n",
        workload.name,
        workload.about,
        report.seeds,
        workload.seconds / 60.0,
        workload.pool
    );
    let _ = writeln!(
        text,
        "| rule | checkouts | pauses | leaks | found | delay median | p99 | taken back median | p99 | healthy suspected | healthy taken | refused |"
    );
    let _ = writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let observed = std::iter::once(("pgleash, observing", &report.observed));
    for (name, score) in report.ruled.iter().map(|(name, score)| (*name, score)).chain(observed) {
        let seconds = |list: &[f64], share| match list {
            [] => "-".to_owned(),
            _ => format!("{:.1} s", quantile(list, share)),
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            score.checkouts,
            score.pauses,
            score.leaks,
            score.found.len(),
            seconds(&score.found, 0.5),
            seconds(&score.found, 0.99),
            seconds(&score.taken, 0.5),
            seconds(&score.taken, 0.99),
            score.healthy_suspected,
            score.healthy_killed,
            score.refused,
        );
    }
    let _ = writeln!(text, "\nWithout a watchdog: {}.", without(workload, report));
    text
}

fn without(workload: &Workload, report: &Report) -> String {
    let exhausted: Vec<f64> =
        report.observed.exhausted.iter().flatten().map(|at| at - workload.begins).collect();
    if exhausted.is_empty() {
        return "the pool is never exhausted".to_owned();
    }
    let (leads, median) = (report.leads(), quantile(&exhausted, 0.5));
    format!(
        "exhausted in {} of {} traces, {median:.0} s after the beginning (median); foreseen {:.0} s before (median), \
         {:.0} s at least",
        exhausted.len(),
        report.seeds,
        quantile(&leads, 0.5),
        quantile(&leads, 0.0)
    )
}

/// Every goal of every workload.
pub(crate) fn goals(reports: &[(Workload, Report)]) -> String {
    let mut text = String::from("\n| workload | goals |\n| --- | --- |\n");
    for (workload, report) in reports {
        let said: Vec<_> = report
            .goals(workload)
            .iter()
            .map(|goal| format!("{}{}", if goal.met { "" } else { "NOT MET: " }, goal.said))
            .collect();
        let _ = writeln!(text, "| {} | {} |", workload.name, said.join("; "));
    }
    text
}

fn quantile(list: &[f64], share: f64) -> f64 {
    let mut sorted = list.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len().saturating_sub(1)) as f64 * share;
    sorted.get(place as usize).copied().unwrap_or(f64::NAN)
}
