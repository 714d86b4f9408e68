//! The incident on a simulated clock: the same trace that `just bench-detection` plays at length.

#[path = "../benches/detection/rules.rs"]
#[allow(dead_code, reason = "the bench plays more rules")]
mod rules;
#[path = "../benches/detection/sim.rs"]
#[allow(dead_code, reason = "the bench tells more")]
mod sim;
#[path = "../benches/detection/work.rs"]
#[allow(dead_code, reason = "the bench plays more workloads")]
mod work;

use sim::Trace;

#[test]
fn the_incident_is_foreseen_and_no_healthy_payment_is_taken() {
    let workload = work::all().into_iter().find(|workload| workload.name == "incident").unwrap();
    let trace = Trace { workload: &workload, seed: 1 };

    let observed = trace.play(&mut rules::observing(&workload));
    let exhausted = observed.exhausted[0].expect("without a watchdog the pool is exhausted");
    let foreseen = observed.first_forecast[0].expect("that is foreseen");
    assert!(exhausted - foreseen >= 420.0, "foreseen {:.0} s before", exhausted - foreseen);

    let mut kept = trace.play(&mut *rules::make("pgleash", &workload));
    assert!(kept.checkouts > 100_000 && kept.leaks > 30, "{} and {}", kept.checkouts, kept.leaks);
    assert_eq!((kept.healthy_killed, kept.missed, kept.refused), (0, 0, 0));
    kept.found.sort_by(f64::total_cmp);
    let median = kept.found[kept.found.len() / 2];
    assert!(median <= 10.0, "found after {median:.1} s");
}
