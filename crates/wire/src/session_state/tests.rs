use proptest::prelude::*;

use super::*;

fn words(mode: PoolMode) -> SessionState {
    SessionState::new(mode, Vec::new(), false)
}

fn send(words: &mut SessionState, tag: u8, body: &[u8]) -> Pins {
    words.frame(Frame { tag, body_len: body.len(), body });
    words.frame_ends(tag)
}

/// A client in transaction mode that has sent these queries.
fn after(queries: &[&str]) -> SessionState {
    let mut words = words(PoolMode::Transaction);
    for sql in queries {
        send(&mut words, b'Q', sql.as_bytes());
    }
    words
}

#[test]
fn what_a_query_may_have_done_is_asked_for_and_what_a_parse_may_do_when_it_runs() {
    let listens = after(&["listen x"]);
    assert!(listens.is_unsettled() && listens.pinned().is_none());
    assert_eq!(listens.verifiable(), Pins::of(Pin::Listen));
    let mut words = words(PoolMode::Transaction);
    let found = send(&mut words, b'P', b"p1\0set work_mem = 1\0\0\0");
    assert!(!words.is_unsettled() && words.touched().next().is_none());
    words.run(found);
    assert!(words.is_unsettled());
    assert_eq!(words.touched().collect::<Vec<_>>(), ["work_mem"]);
}

#[test]
fn what_the_server_says_counts() {
    let mut words = after(&["listen x; select pg_try_advisory_lock(1)"]);
    words.settled(Pins::of(Pin::Listen));
    assert_eq!((words.pinned(), words.is_unsettled()), (Some(Pin::Listen), false));
    // Only what may end it has it asked again.
    send(&mut words, b'Q', b"select 1");
    assert!(!words.is_unsettled());
    send(&mut words, b'Q', b"unlisten *");
    assert_eq!((words.is_unsettled(), words.verifiable()), (true, Pins::of(Pin::Listen)));
    words.settled(Pins::default());
    assert_eq!(words.pinned(), None);
}

#[test]
fn a_name_that_is_not_known_pins_until_everything_is_discarded() {
    let mut words = after(&["select set_config($1, $2, false)"]);
    assert!(words.ran().has(Pins::HIDES));
    words.settled(Pins::of(Pin::Setting));
    assert_eq!(words.pinned(), Some(Pin::Setting));
    send(&mut words, b'Q', b"reset all");
    words.settled(Pins::default());
    assert_eq!(words.pinned(), Some(Pin::Setting), "RESET ALL leaves a role alone");
    // One that fails has done nothing.
    send(&mut words, b'Q', b"discard all");
    words.failed();
    words.settled(Pins::default());
    assert_eq!(words.pinned(), Some(Pin::Setting));
    send(&mut words, b'Q', b"discard all");
    words.settled(Pins::default());
    assert_eq!(words.pinned(), None);
}

#[test]
fn a_long_statement_and_a_library_keep_their_connection() {
    let mut words = words(PoolMode::Transaction);
    words.run(Pins::of(Pin::PreparedStatement));
    words.settle();
    assert_eq!(words.pinned(), Some(Pin::PreparedStatement));
    words.completed(b"DEALLOCATE ALL\0");
    words.settle();
    assert_eq!(words.pinned(), None);
    // One that was made behind it stays.
    words.completed(b"DEALLOCATE ALL\0");
    words.run(Pins::of(Pin::PreparedStatement));
    words.settle();
    assert_eq!(words.pinned(), Some(Pin::PreparedStatement));
    let mut words = after(&["load 'x'", "discard all"]);
    words.settled(Pins::default());
    assert_eq!(words.pinned(), Some(Pin::Load));
}

#[test]
fn a_session_of_its_own_is_kept_whatever_runs() {
    let mut words = words(PoolMode::Session);
    assert_eq!(words.pinned(), Some(Pin::SessionMode));
    send(&mut words, b'P', b"\0listen x\0\0\0");
    assert_eq!(words.verifiable(), Pins::of(Pin::Listen));
    words.settled(Pins::of(Pin::Listen));
    assert_eq!(words.pinned(), Some(Pin::Listen), "a purpose is shown before the mode");
    send(&mut words, b'Q', b"discard all");
    words.settled(Pins::default());
    assert_eq!(words.pinned(), Some(Pin::SessionMode));
}

#[test]
fn a_client_waits_behind_a_reset_until_it_has_its_own_again() {
    assert!(after(&["reset work_mem"]).holds() && after(&["discard all"]).holds());
    assert!(!after(&["set work_mem = 1"]).holds());
    let mut words = words(PoolMode::Transaction);
    let found = send(&mut words, b'P', b"r\0reset work_mem\0\0\0");
    words.run(found);
    assert!(!words.holds(), "before its batch has ended");
    words.frame_ends(b'S');
    assert!(words.holds());
    words.restored();
    // In the same transaction the reset is not due again.
    send(&mut words, b'Q', b"set work_mem = 1");
    assert!(!words.holds() && !words.resets("work_mem") && !words.resets("datestyle"));
    let words = after(&["set datestyle = x; reset all; set work_mem = 1"]);
    assert!(words.resets("datestyle") && words.resets("timezone") && !words.resets("work_mem"));
}

#[test]
fn what_nobody_has_touched_may_have_been_set_by_a_function() {
    let mut words = after(&["set timezone = 'UTC'"]);
    words.reported("timezone");
    assert!(!words.is_undone());
    words.reported("datestyle");
    assert!(words.is_undone() && words.touches("datestyle"));
}

#[test]
fn what_is_created_may_be_temporary_by_the_search_path() {
    let temporary = |queries: &[&str]| after(queries).verifiable().has(Pins::of(Pin::TempTable));
    assert!(!temporary(&["create table t (n int)"]));
    assert!(temporary(&["set local search_path = 'pg_temp'", "create table t (n int)"]));
    assert!(temporary(&["set search_path = x", "select 1 into t"]));
    let mut words = SessionState::new(PoolMode::Transaction, Vec::new(), true);
    send(&mut words, b'Q', b"create table t (n int)");
    assert_eq!(words.verifiable(), Pins::of(Pin::TempTable));
}

#[test]
fn too_many_names_are_any() {
    let many: String = (0..40).map(|n| format!("set x{n} = 1;")).collect();
    assert!(after(&[&many]).ran().has(Pins::HIDES.and(Pins::TOUCHES_ALL)));
}

/// The name is no part of the text, whatever it is and however it arrives.
#[test]
fn a_parse_is_read_behind_its_name() {
    for name in ["", "S_1", "x'", "x\"", "x--", "x/*", "x$$", "\\", "a;b"] {
        for (sql, kind) in [
            ("SET work_mem = 1", Pins::TOUCHES),
            ("LOAD 'x'", Pins::of(Pin::Load)),
            ("LISTEN x", Pins::of(Pin::Listen)),
            ("DO $$ BEGIN EXECUTE x; END $$", Pins::HIDES),
            ("SELECT pg_advisory_lock(1)", Pins::of(Pin::AdvisoryLock)),
            ("DISCARD ALL", Pins::DISCARDS),
        ] {
            let body = format!("{name}\0{sql}\0\0\0");
            let body = body.as_bytes();
            for cut in 0..=body.len() {
                let mut words = words(PoolMode::Transaction);
                words.frame(Frame { tag: b'P', body_len: body.len(), body: &body[..cut] });
                words.body(&body[cut..]);
                let found = words.frame_ends(b'P');
                assert_eq!(found.within(kind), kind, "{name:?} {sql}, cut at {cut}");
            }
        }
    }
}

proptest! {
    /// However a query is cut, the same is found in it.
    #[test]
    fn a_query_is_read_alike_in_pieces(sql in "[ -~]{0,60}(SET|reset|;|'|set_config|listen| x\\.y = 1){0,8}", cuts in prop::collection::vec(0_usize..80, 0..4)) {
        let whole = after(&[&sql]);
        let mut pieces = words(PoolMode::Transaction);
        let mut rest = sql.as_bytes();
        pieces.frame(Frame { tag: b'Q', body_len: rest.len(), body: &[] });
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.body(piece);
            rest = after;
        }
        pieces.body(rest);
        pieces.frame_ends(b'Q');
        prop_assert_eq!(whole.ran(), pieces.ran());
        prop_assert!(whole.touched().eq(pieces.touched()));
    }
}
