use super::*;

const fn at(seconds: u64) -> Moment {
    Moment::from_secs(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// One pause of `length` each second from `from` on.
fn pauses(history: &mut History, group: GroupId, length: Duration, from: u64, count: u64) {
    for second in from..from + count {
        history.paused(group, Pause::InTransaction, length, at(second), at(second));
    }
}

#[test]
fn a_habit_takes_many_pauses_over_some_time() {
    let mut history = History::new();
    let group = history.began("web", None, at(0));
    let habit = |history: &History, now| history.habit(group, Pause::InTransaction, at(now));
    assert!(!habit(&history, 0).is_warm());
    for _ in 0..1000 {
        history.paused(group, Pause::InTransaction, ms(20), at(10), at(10));
    }
    assert!(!habit(&history, 11).is_warm(), "many, but all of one second");
    history.paused(group, Pause::InTransaction, ms(900), at(80), at(80));
    assert!(habit(&history, 80).is_warm());
    assert_eq!(habit(&history, 80).worst, ms(900));
    assert!(!history.habit(group, Pause::Held, at(80)).is_warm(), "the other kind is another matter");
}

#[test]
fn a_new_route_is_measured_by_its_application_until_it_is_known_itself() {
    let mut history = History::new();
    let (pay, refund) = (Arc::from("POST /pay"), Arc::from("POST /refund"));
    let old = history.began("web", Some(&pay), at(0));
    pauses(&mut history, old, ms(700), 0, 400);
    let new = history.began("web", Some(&refund), at(400));
    let habit = history.habit(new, Pause::InTransaction, at(400));
    assert_eq!((habit.of, habit.worst), (Some(history.app_of(new)), ms(700)));
    pauses(&mut history, new, ms(30), 400, 400);
    let habit = history.habit(new, Pause::InTransaction, at(800));
    assert_eq!((habit.of, habit.worst), (Some(new), ms(30)));
    let stranger = history.began("cron", None, at(800));
    assert!(!history.habit(stranger, Pause::InTransaction, at(800)).is_warm());
}

#[test]
fn what_was_usual_once_fades() {
    let mut history = History::new();
    let group = history.began("web", None, at(0));
    let worst = |history: &History, now| history.habit(group, Pause::InTransaction, at(now)).worst;
    pauses(&mut history, group, ms(9000), 0, 1);
    pauses(&mut history, group, ms(20), 1, 1900);
    assert_eq!(worst(&history, 1901), ms(9000), "for half an hour at least");
    pauses(&mut history, group, ms(20), 1901, 1800);
    assert_eq!(worst(&history, 3701), ms(20), "for an hour at most");
    assert!(!history.habit(group, Pause::InTransaction, at(10_000)).is_warm(), "silence is forgotten, too");
}

#[test]
fn siblings_that_went_on_are_counted_from_a_moment_on() {
    let mut history = History::new();
    let group = history.began("web", None, at(0));
    pauses(&mut history, group, ms(20), 100, 50);
    let since = |moment| history.over_since(group, Pause::InTransaction, at(moment));
    assert_eq!((since(99), since(139), since(149)), (50, 10, 0));
    // Told late, and not in order: what began long ago is no younger for that.
    history.paused(group, Pause::InTransaction, ms(20), at(120), at(151));
    assert_eq!(history.over_since(group, Pause::InTransaction, at(130)), 19);
    assert_eq!(history.over_since(group, Pause::InTransaction, at(119)), 31);
}

#[test]
fn how_long_it_is_held_is_remembered_too() {
    let mut history = History::new();
    let group = history.began("web", None, at(0));
    assert_eq!(history.hold_quantile(group, 0.5), None);
    for milliseconds in 1..=1000 {
        history.held(group, ms(milliseconds), at(1));
    }
    let median = history.hold_quantile(group, 0.5).unwrap();
    assert!((0.48..0.52).contains(&median), "{median}");
}

#[test]
fn a_hundred_thousand_names_share_what_room_there_is() {
    let mut history = History::new();
    let known = history.began("web", None, at(0));
    let mut others = 0;
    for n in 0..100_000 {
        let route = Arc::from(format!("/{n}"));
        let group = history.began(&format!("app-{n}"), Some(&route), at(1));
        history.paused(group, Pause::InTransaction, ms(1), at(1), at(1));
        history.ended(group, at(1));
        others += u64::from(group == History::OTHER);
    }
    assert!(history.records.len() <= History::GROUPS + History::APPS);
    assert_eq!(history.take_folded(), others);
    assert_eq!(others, 100_000 - (History::APPS as u64 - 1));
    // An hour later there is room again, but not that of a checkout that is still out.
    let fresh = history.began("fresh", None, at(4000));
    assert_ne!(fresh, History::OTHER);
    assert_ne!(fresh, known);
    assert_eq!(history.began("web", None, at(4000)), known);
}

#[test]
fn routes_beyond_the_bound_count_as_their_application() {
    let mut history = History::new();
    let whole = history.began("web", None, at(0));
    let groups: Vec<_> =
        (0..1000).map(|n| history.began("web", Some(&Arc::from(format!("/{n}"))), at(0))).collect();
    assert_eq!(groups.iter().filter(|group| **group == whole).count() as u64, history.take_folded());
    assert!(groups.iter().filter(|group| **group != whole).count() > 200);
    assert_ne!(history.began("cron", None, at(0)), History::OTHER, "applications keep their room");
}
