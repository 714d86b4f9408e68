//! Detection on labelled traces: pgleash's ledger and judge, and the rules of the field, on the same simulated
//! checkouts, of which it is known which leak. `just bench-detection`; nothing here touches a clock or a socket.

mod rules;
mod sim;
mod table;
mod work;

use std::process::ExitCode;

use sim::{Score, Trace};

/// What is played: `--checkouts N` a workload, `--only NAME`, `--seeds N` at most.
struct Args {
    checkouts: u64,
    seeds: u64,
    only: Option<String>,
}

impl Args {
    fn parse() -> Result<Self, String> {
        let mut args = Self { checkouts: 1_000_000, seeds: 200, only: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--bench" => {}
                "--checkouts" => args.checkouts = number(&value()?)?,
                "--seeds" => args.seeds = number(&value()?)?,
                "--only" => args.only = Some(value()?),
                _ => return Err(format!("{word}: not known; --checkouts N, --seeds N and --only NAME are")),
            }
        }
        Ok(args)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("{text} is not a number"))
}

fn main() -> ExitCode {
    let args = match Args::parse() {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(64);
        }
    };
    let chosen = |workload: &work::Workload| args.only.as_ref().is_none_or(|only| only == workload.name);
    let workloads: Vec<_> = work::all().into_iter().filter(chosen).collect();
    let reports: Vec<_> = std::thread::scope(|scope| {
        let args = &args;
        let playing: Vec<_> =
            workloads.iter().map(|workload| scope.spawn(move || play(workload, args))).collect();
        playing.into_iter().map(|report| report.join().expect("a simulation does not panic")).collect()
    });
    let reports: Vec<_> = workloads.into_iter().zip(reports).collect();
    for (workload, report) in &reports {
        println!("{}", table::of(workload, report));
    }
    println!("{}", table::goals(&reports));
    let met = reports.iter().all(|(workload, report)| report.goals(workload).iter().all(|goal| goal.met));
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What each rule made of one workload, over all seeds.
pub struct Report {
    seeds: u64,
    /// Nothing is taken back: what would have been, and when the pool would have been exhausted.
    observed: Score,
    /// By name.
    ruled: Vec<(&'static str, Score)>,
}

fn play(workload: &work::Workload, args: &Args) -> Report {
    let mut report = Report {
        seeds: 0,
        observed: Score::default(),
        ruled: rules::NAMES.iter().map(|name| (*name, Score::default())).collect(),
    };
    let enough = |score: &Score| score.checkouts >= args.checkouts || score.pauses >= 10 * args.checkouts;
    while report.seeds < args.seeds && !enough(&report.ruled[0].1) {
        let trace = Trace { workload, seed: report.seeds };
        report.observed.add(trace.play(&mut rules::observing(workload)));
        for (name, score) in &mut report.ruled {
            score.add(trace.play(&mut *rules::make(name, workload)));
        }
        report.seeds += 1;
    }
    report
}
