use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::frame::{Cut, Cutter, Direction};

fn words(mode: PoolMode) -> Words {
    Words::new(mode, Reported::default())
}

fn send(words: &mut Words, tag: u8, body: &[u8]) -> Pins {
    words.frame(Frame { tag, body_len: body.len(), body }, false);
    words.frame_ends()
}

/// A client in transaction mode that has sent these queries.
fn after(queries: &[&str]) -> Words {
    let mut words = words(PoolMode::Transaction);
    for sql in queries {
        send(&mut words, b'Q', sql.as_bytes());
    }
    words
}

#[test]
fn what_a_query_leaves_behind_pins_at_once_and_what_a_parse_does_when_it_runs() {
    assert_eq!(after(&["listen x"]).pinned(), Some(Pin::Listen));
    let mut words = words(PoolMode::Transaction);
    assert_eq!(send(&mut words, b'P', b"p1\0listen x\0\0\0"), Pins::of(Pin::Listen));
    assert_eq!(words.pinned(), None);
    words.pin(Pins::of(Pin::Listen));
    assert_eq!(words.pinned(), Some(Pin::Listen));
}

#[test]
fn a_purpose_is_seen_behind_other_pins_and_in_session_mode() {
    assert_eq!(after(&["prepare p as select 1", "listen x"]).pinned(), Some(Pin::Listen));
    let mut words = words(PoolMode::Session);
    assert_eq!(words.pinned(), Some(Pin::SessionMode));
    send(&mut words, b'P', b"\0listen x\0\0\0");
    assert_eq!(words.pinned(), Some(Pin::Listen));
    words.settle();
    words.completed(b"DISCARD ALL\0");
    words.settle();
    assert_eq!(words.pinned(), Some(Pin::SessionMode));
}

/// What a client in transaction mode has set, or set back, for good, and whether it is pinned, after frames of its own (a tag and a
/// text) and of the server's (a tag and a body behind `<`). The first is sent on a quiet connection.
fn set_by(steps: &[(&str, &str)]) -> (Vec<Assigned>, Option<Pin>) {
    let mut words = played(steps);
    (words.take_set(), words.pinned())
}

fn played(steps: &[(&str, &str)]) -> Words {
    let mut words = words(PoolMode::Transaction);
    let (mut quiet, mut unnamed) = (true, Pins::default());
    for (tag, text) in steps {
        match *tag {
            "<C" => words.completed(format!("{text}\0").as_bytes()),
            "<E" => words.failed(),
            "<Z" => {
                words.ready(*text == "I");
                quiet = *text == "I";
                if quiet {
                    words.settle();
                }
            }
            _ => {
                let tag = tag.as_bytes()[0];
                let body = match tag {
                    b'P' => format!("\0{text}\0\0\0"),
                    b'B' => "\0\0\0\0\0\0\0\0".to_owned(),
                    _ => format!("{text}\0"),
                };
                words.frame(Frame { tag, body_len: body.len(), body: body.as_bytes() }, quiet);
                let found = words.frame_ends();
                if tag == b'P' {
                    unnamed = found;
                } else if tag == b'B' {
                    words.pin(unnamed);
                }
                quiet = false;
            }
        }
    }
    words
}

#[test]
fn a_set_that_stands_alone_is_followed() {
    let set = (vec![("work_mem".to_owned(), Some("1MB".to_owned()))], None);
    let sql = "SET work_mem = '1MB'";
    assert_eq!(set_by(&[("Q", sql), ("<C", "SET"), ("<Z", "I")]), set);
    let batch = [("P", sql), ("B", ""), ("D", ""), ("E", ""), ("S", "")];
    assert_eq!(set_by(&[&batch[..], &[("<C", "SET"), ("<Z", "I")]].concat()), set);
    // What is sent behind it is the next transaction.
    assert_eq!(
        set_by(&[("Q", sql), ("Q", "SELECT 1"), ("<C", "SET"), ("<Z", "I"), ("<E", ""), ("<Z", "I")]),
        set
    );
    // One that fails, or is not run, sets nothing.
    assert_eq!(set_by(&[("Q", sql), ("<E", ""), ("<Z", "I")]), (vec![], None));
    assert_eq!(set_by(&[&batch[..], &[("<E", ""), ("<Z", "I")]].concat()), (vec![], None));
    assert_eq!(set_by(&[("P", sql), ("B", ""), ("S", ""), ("<Z", "I")]), (vec![], None));
    // The server reports it.
    assert_eq!(set_by(&[("Q", "SET timezone = 'UTC'"), ("<C", "SET"), ("<Z", "I")]), (vec![], None));
}

#[test]
fn a_reset_that_stands_alone_is_followed() {
    let back = (vec![("work_mem".to_owned(), None)], None);
    let sql = "RESET work_mem";
    assert_eq!(set_by(&[("Q", sql), ("<C", "RESET"), ("<Z", "I")]), back);
    assert_eq!(set_by(&[("Q", "SET work_mem TO DEFAULT"), ("<C", "SET"), ("<Z", "I")]), back);
    let batch = [("P", sql), ("B", ""), ("D", ""), ("E", ""), ("S", ""), ("<C", "RESET"), ("<Z", "I")];
    assert_eq!(set_by(&batch), back);
    assert_eq!(set_by(&[("Q", sql), ("<E", ""), ("<Z", "I")]), (vec![], None));
    // It says nothing of others, and is over when the parameter is set again.
    let mut words = played(&[("Q", sql), ("<C", "RESET"), ("<Z", "I")]);
    assert!(words.take_set().len() == 1 && words.set_back() == ["work_mem"] && words.resets().is_empty());
    words.frame(Frame { tag: b'Q', body_len: 18, body: b"SET work_mem = 1;\0" }, true);
    words.frame_ends();
    words.completed(b"SET\0");
    words.ready(true);
    assert!(words.take_set().len() == 1 && !words.owes_own());
}

#[test]
fn a_reset_among_others_pins_and_is_done_with_them() {
    let after = |steps: &[(&'static str, &'static str)]| {
        let mut words = played(steps);
        (words.take_set(), words.pinned(), words.resets().clone(), words.is_doubtful())
    };
    let (sql, work_mem) = ("RESET work_mem", || Resets::Of(vec!["work_mem".to_owned()]));
    let batch = [("P", sql), ("B", ""), ("E", "")];
    let behind = [("P", "COMMIT"), ("B", ""), ("E", ""), ("S", "")];
    let ends = [("<C", "RESET"), ("<C", "COMMIT"), ("<Z", "I")];
    let pinned = (vec![], Some(Pin::Setting), work_mem(), false);
    assert_eq!(after(&[&batch[..], &behind, &ends].concat()), pinned);
    // The server has done it before more is sent.
    assert_eq!(after(&[&batch[..], &ends[..1], &behind, &ends[1..]].concat()), pinned);
    // And undoes it.
    let undone = (vec![], Some(Pin::Setting), Resets::default(), true);
    assert_eq!(after(&[&batch[..], &ends[..1], &behind, &[("<E", ""), ("<Z", "I")]].concat()), undone);
}

#[test]
fn a_set_behind_a_reset_of_all_is_not_reset() {
    let steps = [
        ("Q", "RESET ALL"),
        ("<C", "RESET"),
        ("<Z", "I"),
        ("Q", "SET work_mem = 1"),
        ("<C", "SET"),
        ("<Z", "I"),
    ];
    let mut words = played(&steps);
    assert_eq!(words.take_set().len(), 1);
    assert_eq!(words.resets(), &Resets::AllBut(vec!["work_mem".to_owned()]));
}

#[test]
fn a_set_among_others_pins() {
    let pinned = (vec![], Some(Pin::Setting));
    let sql = "SET work_mem = '1MB'";
    let ends = [("<C", "SET"), ("<Z", "I")];
    let after = |steps: &[(&'static str, &'static str)]| set_by(&[steps, &ends].concat());
    // In a transaction, which may be rolled back.
    assert_eq!(
        set_by(&[("Q", "BEGIN"), ("<C", "BEGIN"), ("<Z", "T"), ("Q", sql), ("<C", "SET"), ("<Z", "T")]),
        pinned
    );
    assert_eq!(after(&[("Q", "SET work_mem = '1MB'; SELECT 1")]), pinned);
    // With another statement in its batch, before or behind.
    assert_eq!(
        after(&[("P", sql), ("B", ""), ("E", ""), ("P", "COMMIT"), ("B", ""), ("E", ""), ("S", "")]),
        pinned
    );
    assert_eq!(
        after(&[("P", "SELECT 1"), ("B", ""), ("E", ""), ("P", sql), ("B", ""), ("E", ""), ("S", "")]),
        pinned
    );
    assert_eq!(after(&[("P", sql), ("B", ""), ("B", ""), ("E", ""), ("S", "")]), pinned);
    // Of a statement that was parsed before, in a batch of its own.
    assert_eq!(after(&[("P", sql), ("S", ""), ("<Z", "I"), ("B", ""), ("E", ""), ("S", "")]), pinned);
    // The transaction is open still, or fails at its end.
    assert_eq!(set_by(&[("Q", sql), ("<C", "SET"), ("<Z", "T")]), pinned);
    assert_eq!(set_by(&[("Q", sql), ("<C", "SET"), ("<E", ""), ("<Z", "I")]), pinned);
}

/// What is left pinned after these queries, each answered with its tag (`E` is an error) and quiet.
fn left(steps: &[(&str, &str)]) -> Option<Pin> {
    let mut words = words(PoolMode::Transaction);
    for (sql, tag) in steps {
        send(&mut words, b'Q', format!("{sql}\0").as_bytes());
        if *tag == "E" {
            words.failed()
        } else {
            words.completed(format!("{tag}\0").as_bytes())
        }
        words.settle();
    }
    words.pinned()
}

#[test]
fn a_pin_ends_with_its_reason() {
    assert_eq!(left(&[("listen x", "LISTEN"), ("unlisten *", "UNLISTEN")]), None);
    assert_eq!(left(&[("listen x", "LISTEN"), ("unlisten x", "UNLISTEN")]), Some(Pin::Listen));
    assert_eq!(left(&[("listen x", "LISTEN"), ("unlisten *", "E")]), Some(Pin::Listen));
    assert_eq!(left(&[("set role r", "SET"), ("reset role", "RESET")]), None);
    assert_eq!(left(&[("set role r", "SET"), ("reset all", "RESET")]), Some(Pin::Role));
    assert_eq!(left(&[("set work_mem = 1", "SET"), ("reset all", "RESET")]), None);
    assert_eq!(left(&[("create temp table t()", "CREATE TABLE"), ("discard temp", "DISCARD TEMP")]), None);
    assert_eq!(left(&[("prepare p as select 1", "PREPARE"), ("deallocate all", "DEALLOCATE ALL")]), None);
    let lock = ("select pg_advisory_lock(1)", "SELECT 1");
    assert_eq!(left(&[lock, ("select pg_advisory_unlock_all()", "SELECT 1")]), None);
    assert_eq!(left(&[lock, ("select pg_advisory_unlock(1)", "SELECT 1")]), Some(Pin::AdvisoryLock));
    assert_eq!(left(&[("listen x", "LISTEN"), lock, ("discard all", "DISCARD ALL")]), None);
    assert_eq!(left(&[("load 'x'", "LOAD"), ("reset all", "RESET")]), Some(Pin::Load));
}

#[test]
fn what_is_rolled_back_has_not_ended() {
    let mut words = after(&["listen x"]);
    words.settle();
    for (sql, tag) in [("begin", "BEGIN"), ("unlisten *", "UNLISTEN"), ("rollback", "ROLLBACK")] {
        send(&mut words, b'Q', sql.as_bytes());
        words.completed(tag.as_bytes());
    }
    words.settle();
    assert_eq!(words.pinned(), Some(Pin::Listen));
}

/// Which parameters are set back for good, after these answers to these queries.
fn set_back(steps: &[(&str, &[&str])]) -> (Resets, bool) {
    let mut words = words(PoolMode::Transaction);
    for (sql, _) in steps {
        send(&mut words, b'Q', sql.as_bytes());
    }
    for tag in steps.iter().flat_map(|(_, tags)| *tags) {
        if *tag == "E" { words.failed() } else { words.completed(tag.as_bytes()) }
    }
    assert_eq!(words.resets(), &Resets::default(), "before the connection is quiet");
    words.settle();
    (words.resets().clone(), words.is_doubtful())
}

#[test]
fn a_reset_counts_when_the_server_says_so_and_for_good() {
    let timezone = || Resets::Of(vec!["timezone".to_owned()]);
    assert_eq!(set_back(&[("reset all", &["RESET"])]), (Resets::all(), false));
    assert_eq!(set_back(&[("reset all", &["E"])]), (Resets::default(), false));
    assert_eq!(set_back(&[("discard all", &["DISCARD ALL"])]), (Resets::all(), false));
    assert_eq!(set_back(&[("begin", &["BEGIN"]), ("discard all", &["E"])]), (Resets::default(), false));
    assert_eq!(set_back(&[("reset timezone", &["RESET"])]), (timezone(), false));
    assert_eq!(set_back(&[("set timezone to default", &["SET"])]), (timezone(), false));
    assert_eq!(set_back(&[("do $$ begin reset timezone; end $$", &["DO"])]), (timezone(), false));
    assert_eq!(set_back(&[("execute something", &["RESET"])]), (Resets::default(), true));
    let rolled_back: &[(&str, &[&str])] =
        &[("begin", &["BEGIN"]), ("reset all", &["RESET"]), ("rollback", &["ROLLBACK"])];
    assert_eq!(set_back(rolled_back), (Resets::default(), true));
    let in_one: &[(&str, &[&str])] = &[("reset all; select 1/0", &["RESET", "E"])];
    assert_eq!(set_back(in_one), (Resets::default(), true));
    let pipelined: &[(&str, &[&str])] = &[("reset nonsense", &["E"]), ("reset timezone", &["RESET"])];
    assert_eq!(set_back(pipelined), (Resets::default(), true), "which one it was is not known any more");
}

#[test]
fn a_parse_resets_nothing_before_it_is_bound() {
    let mut words = words(PoolMode::Transaction);
    send(&mut words, b'P', b"\0reset timezone\0\0\0");
    words.settle();
    assert_eq!(words.resets(), &Resets::default());
    send(&mut words, b'B', b"\0\0\0\0\0\0");
    words.completed(b"RESET\0");
    words.settle();
    assert_eq!(words.resets(), &Resets::Of(vec!["timezone".to_owned()]));
}

#[test]
fn what_was_sent_behind_a_release_stays() {
    let mut words = after(&["listen x"]);
    words.settle();
    // Pipelined: the answer to the first comes when the second has been sent.
    send(&mut words, b'Q', b"discard all");
    send(&mut words, b'Q', b"listen y");
    words.completed(b"DISCARD ALL\0");
    words.completed(b"LISTEN\0");
    words.settle();
    assert_eq!(words.pinned(), Some(Pin::Listen));
}

#[test]
fn a_parse_ends_nothing_before_it_is_bound() {
    let mut words = after(&["listen x"]);
    words.settle();
    send(&mut words, b'P', b"\0unlisten *\0\0\0");
    send(&mut words, b'B', b"\0other\0\0\0\0\0");
    words.completed(b"UNLISTEN\0");
    words.settle();
    assert_eq!(words.pinned(), Some(Pin::Listen));
    send(&mut words, b'P', b"\0unlisten *\0\0\0");
    send(&mut words, b'B', b"\0\0\0\0\0\0");
    words.completed(b"UNLISTEN\0");
    words.settle();
    assert_eq!(words.pinned(), None);
}

/// Statement texts, some longer than what is read at once.
fn queries() -> impl Strategy<Value = Vec<u8>> {
    let sql = prop::sample::select(vec![
        "select 1",
        "listen x",
        "set role r",
        "select pg_advisory_lock(1), 2",
        "unlisten *",
        "",
    ]);
    (sql, 0_usize..900).prop_map(|(sql, pad)| {
        let body = format!("{}{sql}\0", " ".repeat(pad)).into_bytes();
        [&b"Q"[..], &(body.len() as u32 + 4).to_be_bytes(), &body].concat()
    })
}

/// Reads as the relay does: a buffer that grows by `cuts`.
fn read(bytes: &[u8], cuts: &[usize]) -> (Pins, Pins) {
    let mut words = words(PoolMode::Transaction);
    let mut cutter = Cutter::new(Direction::Frontend);
    let (mut seen, mut end) = (0, 0);
    let mut cuts = cuts.iter().cycle();
    while end < bytes.len() {
        end = end.saturating_add(*cuts.next().unwrap()).min(bytes.len());
        loop {
            let taken = match cutter.next(&bytes[seen..end], false, |_| 0).unwrap() {
                Cut::More => break,
                Cut::Frame(frame, taken) => {
                    words.frame(frame, false);
                    taken
                }
                Cut::Body(piece, taken) => {
                    words.body(piece);
                    taken
                }
            };
            seen += taken;
            if cutter.at_boundary() {
                words.frame_ends();
            }
        }
    }
    assert_eq!(seen, bytes.len(), "all of it has passed");
    (words.pinned, words.asked.pins)
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_pins(queries in vec(queries(), 0..8), cuts in vec(1_usize..400, 1..20)) {
        let bytes = queries.concat();
        prop_assert_eq!(read(&bytes, &cuts), read(&bytes, &[usize::MAX]));
    }
}

/// The name is no part of the text, whatever it is and however it arrives.
#[test]
fn a_parse_is_read_behind_its_name() {
    for name in ["", "S_1", "x'", "x\"", "x--", "x/*", "x$$", "\\", "a;b"] {
        for (sql, pin) in [
            ("SET work_mem = 1", Pin::Setting),
            ("SET ROLE joe", Pin::Role),
            ("LOAD 'x'", Pin::Load),
            ("LISTEN x", Pin::Listen),
            ("DO $$ BEGIN SET work_mem = 1; END $$", Pin::Setting),
            ("SELECT pg_advisory_lock(1)", Pin::AdvisoryLock),
        ] {
            let body = format!("{name}\0{sql}\0\0\0");
            let body = body.as_bytes();
            for cut in 0..=body.len() {
                let mut words = words(PoolMode::Transaction);
                words.frame(Frame { tag: b'P', body_len: body.len(), body: &body[..cut] }, false);
                words.body(&body[cut..]);
                let found = words.frame_ends();
                assert_eq!(found.within(Pins::of(pin)), Pins::of(pin), "{name:?} {sql}, cut at {cut}");
            }
        }
    }
}

/// RESET ALL leaves a role alone, and a role may have been set by a name that nobody has read.
#[test]
fn a_reset_does_not_end_the_pin_of_an_unknown_setting() {
    for sql in [
        "select set_config('role', 'joe', false)",
        "set U&\"r\\006fle\" to joe",
        "update pg_settings set setting = 1",
    ] {
        let mut words = after(&[sql, "reset all"]);
        words.settle();
        words.completed(b"RESET\0");
        words.settle();
        assert_eq!(words.pinned(), Some(Pin::Setting), "{sql}");
    }
}
