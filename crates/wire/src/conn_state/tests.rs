use super::*;

/// Plays a conversation: `>x` is a frame from the client, `<x` from the server, `<ZT` a
/// ReadyForQuery in a transaction block.
fn play(script: &str) -> ProtocolState {
    let mut protocol = ProtocolState::new();
    for step in script.split_whitespace() {
        let bytes = step.as_bytes();
        match bytes[0] {
            b'>' => {
                protocol.begun(bytes[1]);
                protocol.sent(bytes[1]);
            }
            _ => protocol.received(bytes[1], bytes.get(2).copied()),
        }
    }
    protocol
}

fn conn_activity(script: &str) -> ConnActivity {
    play(script).conn_activity()
}

#[test]
fn simple_queries_are_in_flight_until_ready() {
    assert_eq!(conn_activity(""), ConnActivity::Quiet);
    assert_eq!(conn_activity(">Q"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">Q <T <D <C"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">Q <T <D <C <ZI"), ConnActivity::Quiet);
    assert_eq!(conn_activity(">Q <C <ZT"), ConnActivity::InTransaction);
    assert_eq!(conn_activity(">Q <C <ZT >Q <E <ZE"), ConnActivity::InTransaction);
    assert_eq!(conn_activity(">Q >Q <C <ZI"), ConnActivity::InFlight);
}

#[test]
fn a_missing_sync_is_seen_once_all_replies_are_in() {
    assert_eq!(conn_activity(">P >B >D >E >H <1 <2 <T <D"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >B >D >E >H <1 <2 <T <D <C"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >D >E >H <1 <2 <T <D <C >S"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >B >D >E >H <1 <2 <T <D <C >S <ZI"), ConnActivity::Quiet);
}

#[test]
fn a_batch_with_neither_flush_nor_sync_may_be_done_and_silent() {
    assert_eq!(conn_activity(">P >B >E"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >E >H"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >B >E >S"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">Q >P >B >E"), ConnActivity::InFlight);
}

#[test]
fn an_error_in_mid_pipeline_skips_to_sync() {
    assert_eq!(conn_activity(">P >B >E >H <E"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >E >H <E >P >B >E"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >E >H <E >P >B >E >S"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >B >E >S >P >B >E >S <E <ZI <1 <2 <C"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >B >E >S >P >B >E >S <E <ZI <1 <2 <C <ZI"), ConnActivity::Quiet);
}

#[test]
fn a_simple_query_ends_a_batch_without_a_sync() {
    assert_eq!(conn_activity(">P >B >E >Q <1 <2 <C <T"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >B >E >Q <1 <2 <C <T <C <ZI"), ConnActivity::Quiet);
    assert_eq!(conn_activity(">P >B >E >H <E >Q"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >E >H <E >Q >S <ZI"), ConnActivity::Quiet);
}

#[test]
fn queries_behind_a_failed_batch_are_skipped_to_the_sync() {
    assert_eq!(conn_activity(">P >Q >Q >S <E"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >Q >Q >S <E <ZI"), ConnActivity::Quiet);
    assert_eq!(conn_activity(">P >F >S >Q <E <ZI <C"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >F >S >Q <E <ZI <C <ZI"), ConnActivity::Quiet);
    // Without a Sync nothing more is said.
    assert_eq!(conn_activity(">P >B >Q <1 <E"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >Q <1 <E >Q >S <ZI"), ConnActivity::Quiet);
    // The query's own error is not that of the batch before it.
    assert_eq!(conn_activity(">P >B >Q >Q <1 <2 <E <ZI"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">P >B >Q >Q <1 <2 <E <ZI <C <ZI"), ConnActivity::Quiet);
}

#[test]
fn copy_in_waits_for_the_client() {
    assert_eq!(conn_activity(">Q <G"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">Q <G >d >d >S >H"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">Q <G >d >c"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">Q <G >d >c <C <ZI"), ConnActivity::Quiet);
    assert_eq!(conn_activity(">Q <G >d <E"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">Q <G >d <E <ZI"), ConnActivity::Quiet);
}

#[test]
fn what_is_sent_behind_the_end_of_a_copy_counts_although_the_copy_has_not_begun() {
    let batch = ">P >B >E >d >c >S >P >B >E >S <1 <2 <G <C";
    assert_eq!(conn_activity(&format!("{batch} <ZI")), ConnActivity::InFlight);
    assert_eq!(conn_activity(&format!("{batch} <ZI <1 <2 <C")), ConnActivity::InFlight);
    assert_eq!(conn_activity(&format!("{batch} <ZI <1 <2 <C <ZI")), ConnActivity::Quiet);
    let failing = ">P >B >E >d >c >S >P >B >E >S <1 <2 <G <E <ZI";
    assert_eq!(conn_activity(failing), ConnActivity::InFlight);
    assert_eq!(conn_activity(&format!("{failing} <1 <2 <C <ZI")), ConnActivity::Quiet);
    // A Flush behind it asks for replies that are still to come.
    assert_eq!(conn_activity(">B >E >d >c >S >P >D >H <2 <G <E <ZI"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">B >E >d >c >S >P >D >H <2 <G <E <ZI <1 <T"), ConnActivity::AwaitsClient);
    // Two in a row, and two in a text.
    let twice = ">B >E >d >c >S >B >E >d >c >S <2 <G <C <ZI <2 <G";
    assert_eq!(conn_activity(twice), ConnActivity::InFlight);
    assert_eq!(conn_activity(&format!("{twice} <C <ZI")), ConnActivity::Quiet);
    assert_eq!(conn_activity(">Q >d >c >Q <G <C <ZI"), ConnActivity::InFlight);
    assert_eq!(conn_activity(">Q >d >c >Q <G <C <ZI <C <ZI"), ConnActivity::Quiet);
    // One that fails before it begins, and an end that comes behind the error.
    assert_eq!(conn_activity(">B >E >d >c >S <2 <E <ZI"), ConnActivity::Quiet);
    assert_eq!(conn_activity(">Q <G >d <E >c <ZI"), ConnActivity::Quiet);
    assert_eq!(conn_activity(">Q <G >d <E >c <ZI >B >E >S <2 <G"), ConnActivity::AwaitsClient);
}

#[test]
fn a_sync_sent_before_copy_in_began_does_not_count() {
    assert_eq!(conn_activity(">P >B >E >S <1 <2 <G"), ConnActivity::AwaitsClient);
    // Its Sync was ignored, so the server may be done and hold its reply back.
    assert_eq!(conn_activity(">P >B >E >S <1 <2 <G >d >c"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >E >S <1 <2 <G >d >c <C"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">P >B >E >S <1 <2 <G >d >c <C >S <ZI"), ConnActivity::Quiet);
}

#[test]
fn a_sync_that_crosses_with_a_copy_error_is_settled_by_ready() {
    assert_eq!(conn_activity(">P >B >E >H <1 <2 <G >d >S <E <ZI"), ConnActivity::Quiet);
}

#[test]
fn portals_may_be_suspended_and_notices_change_nothing() {
    assert_eq!(conn_activity(">P >B >E >H <1 <2 <D <s <N <A"), ConnActivity::AwaitsClient);
    assert_eq!(conn_activity(">Q <C <ZI <N <S <A"), ConnActivity::Quiet);
}

/// Clears up what is in doubt, as the relay does; the server's answers until then are `late`.
fn cleared(script: &str, late: &str) -> ProtocolState {
    let mut protocol = play(script);
    assert!(protocol.holds(), "{protocol:?}");
    let closes = protocol.asks().expect("the server is asked");
    assert_eq!(protocol.conn_activity(), ConnActivity::InFlight);
    let answer = [late.to_owned(), "<3 ".repeat(closes as usize), "<ZI".to_owned()].concat();
    let (mut told, mut kept) = (String::new(), 0);
    for step in answer.split_whitespace() {
        let (tag, first) = (step.as_bytes()[1], step.as_bytes().get(2).copied());
        match protocol.hears(tag, first) {
            Whose::Ours => kept += 1,
            Whose::Client(closes) => {
                told.push_str(&"<3 ".repeat(closes as usize));
                kept -= closes;
                (0..closes).for_each(|_| protocol.received(b'3', None));
                protocol.received(tag, first);
                told.push_str(&format!("{step} "));
            }
        }
    }
    assert_eq!((told.as_str(), kept), (late, closes + 1), "the client hears what is its own");
    protocol
}

#[test]
fn syncs_in_a_copy_that_fails_may_count() {
    // It was read within the COPY: only the last one is answered.
    for script in [
        ">B >E >H <2 <G >d >S >c >S <E <ZI",
        ">B >E >S <2 <G >d >c >S <E <ZI",
        ">B >E >S >d >c >S <2 <G <E <ZI",
        ">Q <G >d >S >c <E <ZI",
    ] {
        assert_eq!(conn_activity(script), ConnActivity::InFlight, "{script}");
        assert_eq!(cleared(script, "").conn_activity(), ConnActivity::Quiet, "{script}");
        // Or both are.
        assert_eq!(cleared(script, "<ZI ").conn_activity(), ConnActivity::Quiet, "{script}");
    }
    // A batch behind it was sent before anybody has heard of the error: its answers are like those asked for.
    let ahead = ">B >E >S >d >c >S >C >C >S <2 <G <E <ZI";
    assert_eq!(conn_activity(ahead), ConnActivity::InFlight);
    assert_eq!(cleared(&format!("{ahead} <3 <3 <ZI"), "").conn_activity(), ConnActivity::Quiet);
    // A ReadyForQuery before the answers to its batch is another's.
    assert_eq!(conn_activity(&format!("{ahead} <ZI <3 <3")), ConnActivity::InFlight);
    assert_eq!(conn_activity(&format!("{ahead} <ZI <3 <3 <ZI")), ConnActivity::Quiet);
    // Once it has succeeded nothing is in doubt, nor when all have been answered.
    assert_eq!(conn_activity(">B >E >S <2 <G >d >S >c >S <C <ZI"), ConnActivity::Quiet);
    assert_eq!(conn_activity(">B >E >S <2 <G <E <ZI >c >S <ZI"), ConnActivity::Quiet);
}

#[test]
fn what_may_be_skipped_or_not_is_lost() {
    assert!(play(">B >E >S >d >c >P >S <2 <G <E").is_lost());
    assert!(!play(">B >E >S >d >c >P >S <2 <G <C").is_lost());
    assert!(!play(">B >E >d >c >P >S <2 <G <E").is_lost());
    // Sent behind the error, in the belief that it is skipped: the server says that it is not.
    assert!(play(">B >E >S <2 <G <E >P <ZI").is_lost());
    assert!(!play(">B >E >S <2 <G <E >P >S <ZI").is_lost());
}

#[test]
fn no_flood_of_what_is_not_answered_fills_the_queue() {
    for flood in ["c", "f", "d", "H"] {
        let script = format!(">Q <C <ZT {}", format!(">{flood} ").repeat(3 * ProtocolState::MAX_OWED));
        assert!(!play(&script).is_full(), "{flood}");
        let script = format!(">B >E {}", format!(">{flood} ").repeat(3 * ProtocolState::MAX_OWED));
        assert!(!play(&script).is_full(), "{flood}");
    }
    assert!(!play(&format!(">Q <G {}", ">S ".repeat(3 * ProtocolState::MAX_OWED))).is_full());
    assert!(!play(&">B >E >c <2 <C ".repeat(3 * ProtocolState::MAX_OWED)).is_full());
}
