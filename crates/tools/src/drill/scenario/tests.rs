use super::*;

fn scenario(seed: u64) -> Scenario {
    Scenario { seed, minutes: 1.0, rate: 40.0, mode: PoolMode::Session, kind: Kind::Incident }
}

#[test]
fn the_same_seed_draws_the_same_payments_and_another_seed_others() {
    assert_eq!(scenario(7).payments(), scenario(7).payments());
    assert_ne!(scenario(7).payments(), scenario(8).payments());
}

#[test]
fn arrivals_follow_the_rate_and_the_campaign_brings_forty_per_cent_more() {
    let (mut before, mut during) = (0, 0);
    for seed in 0..20 {
        let scenario = scenario(seed);
        let payments = scenario.payments();
        assert!(payments.is_sorted_by_key(|payment| payment.at));
        let (spiked, calm): (Vec<_>, Vec<_>) =
            payments.iter().partition(|payment| scenario.minute(payment.at) >= Phase::Spike.begins());
        before += calm.len();
        during += spiked.len();
    }
    let (before, during) = (f64::from(before as u32) / 10.0, f64::from(during as u32) / 5.0);
    assert!((before / 20.0 - 160.0).abs() < 4.0, "{before} payments in each scenario minute of 20 runs");
    assert!((during / before - 1.4).abs() < 0.05, "{during} over {before}");
}

#[test]
fn the_bug_strikes_only_after_the_deploy_and_fills_the_pool_at_the_end() {
    for seed in 0..20 {
        let scenario = scenario(seed);
        let leaks: Vec<_> =
            scenario.payments().into_iter().filter(|payment| payment.leak.is_some()).collect();
        assert!(leaks.iter().all(|leak| scenario.minute(leak.at) >= Phase::Deploy.begins()));
        assert!((30..=40).contains(&leaks.len()), "{} leaks in a pool of 40", leaks.len());
        let after_commit = leaks.iter().filter(|leak| leak.leak == Some(Leak::AfterCommit)).count();
        assert!(after_commit.abs_diff(leaks.len() - after_commit) <= 1, "half of each kind");
    }
}

#[test]
fn the_bug_is_in_one_route_and_only_where_there_is_one() {
    for kind in Kind::ALL {
        let payments = Scenario { kind: *kind, ..scenario(5) }.payments();
        let leaks: Vec<_> = payments.iter().filter(|payment| payment.leak.is_some()).collect();
        assert_eq!(!leaks.is_empty(), kind.has_bug(), "{kind}");
        assert!(leaks.iter().all(|leak| leak.route == Route::Refund), "{kind}");
        let refunds = payments.iter().filter(|payment| payment.route == Route::Refund).count();
        assert!((0.15..0.25).contains(&(refunds as f64 / payments.len() as f64)), "{kind}: {refunds}");
        let slow = payments.iter().filter(|payment| !payment.runs.is_zero()).count();
        assert_eq!(slow > 0, *kind == Kind::SlowQueries, "{kind}: {slow}");
    }
}

#[test]
fn in_transaction_mode_every_leak_is_in_mid_transaction() {
    let scenario = Scenario { mode: PoolMode::Transaction, ..scenario(3) };
    let leaks: Vec<_> = scenario.payments().iter().filter_map(|payment| payment.leak).collect();
    assert!(!leaks.is_empty() && leaks.iter().all(|leak| *leak == Leak::MidTransaction));
}

#[test]
fn limits_shrink_with_time_but_no_healthy_payment_comes_near_them() {
    for minutes in [0.1, 0.5, 1.0, 3.0, 15.0] {
        let scenario = Scenario { minutes, ..scenario(1) };
        let limit = scenario.limits().idle_in_transaction;
        assert!(limit >= Duration::from_millis(1500));
        let longest = scenario.payments().iter().map(|payment| payment.think).max().unwrap();
        assert!(longest <= limit.mul_f64(0.55), "{minutes} min: {longest:?} of {limit:?}");
    }
    assert_eq!(scenario(1).limits().idle_in_transaction, Duration::from_secs(2));
    assert_eq!(Scenario { minutes: 15.0, ..scenario(1) }.limits().idle_session, Duration::from_secs(60));
}

#[test]
fn the_phases_are_in_order() {
    let phases = [0.0, 9.99, 10.0, 99.0].map(|minute| Kind::Incident.phase(minute));
    assert_eq!(phases, [Phase::Baseline, Phase::Deploy, Phase::Spike, Phase::Index]);
    assert_eq!(Kind::Storm.phase(12.0), Phase::Baseline);
}
