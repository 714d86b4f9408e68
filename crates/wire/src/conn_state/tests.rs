use super::*;

/// Plays a conversation: `>x` is a frame from the client, `<x` from the server, `<ZT` a
/// ReadyForQuery in a transaction block.
fn play(script: &str) -> Pulse {
    let mut pulse = Pulse::new();
    for step in script.split_whitespace() {
        let bytes = step.as_bytes();
        match bytes[0] {
            b'>' => {
                pulse.begun(bytes[1]);
                pulse.sent(bytes[1]);
            }
            _ => pulse.received(bytes[1], bytes.get(2).copied()),
        }
    }
    pulse
}

fn beat(script: &str) -> Beat {
    play(script).beat()
}

#[test]
fn simple_queries_are_in_flight_until_ready() {
    assert_eq!(beat(""), Beat::Quiet);
    assert_eq!(beat(">Q"), Beat::InFlight);
    assert_eq!(beat(">Q <T <D <C"), Beat::InFlight);
    assert_eq!(beat(">Q <T <D <C <ZI"), Beat::Quiet);
    assert_eq!(beat(">Q <C <ZT"), Beat::InTransaction);
    assert_eq!(beat(">Q <C <ZT >Q <E <ZE"), Beat::InTransaction);
    assert_eq!(beat(">Q >Q <C <ZI"), Beat::InFlight);
}

#[test]
fn a_missing_sync_is_seen_once_all_replies_are_in() {
    assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D"), Beat::InFlight);
    assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D <C"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D <C >S"), Beat::InFlight);
    assert_eq!(beat(">P >B >D >E >H <1 <2 <T <D <C >S <ZI"), Beat::Quiet);
}

#[test]
fn a_batch_with_neither_flush_nor_sync_may_be_done_and_silent() {
    assert_eq!(beat(">P >B >E"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >E >H"), Beat::InFlight);
    assert_eq!(beat(">P >B >E >S"), Beat::InFlight);
    assert_eq!(beat(">Q >P >B >E"), Beat::InFlight);
}

#[test]
fn an_error_in_mid_pipeline_skips_to_sync() {
    assert_eq!(beat(">P >B >E >H <E"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >E >H <E >P >B >E"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >E >H <E >P >B >E >S"), Beat::InFlight);
    assert_eq!(beat(">P >B >E >S >P >B >E >S <E <ZI <1 <2 <C"), Beat::InFlight);
    assert_eq!(beat(">P >B >E >S >P >B >E >S <E <ZI <1 <2 <C <ZI"), Beat::Quiet);
}

#[test]
fn a_simple_query_ends_a_batch_without_a_sync() {
    assert_eq!(beat(">P >B >E >Q <1 <2 <C <T"), Beat::InFlight);
    assert_eq!(beat(">P >B >E >Q <1 <2 <C <T <C <ZI"), Beat::Quiet);
    assert_eq!(beat(">P >B >E >H <E >Q"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >E >H <E >Q >S <ZI"), Beat::Quiet);
}

#[test]
fn queries_behind_a_failed_batch_are_skipped_to_the_sync() {
    assert_eq!(beat(">P >Q >Q >S <E"), Beat::InFlight);
    assert_eq!(beat(">P >Q >Q >S <E <ZI"), Beat::Quiet);
    assert_eq!(beat(">P >F >S >Q <E <ZI <C"), Beat::InFlight);
    assert_eq!(beat(">P >F >S >Q <E <ZI <C <ZI"), Beat::Quiet);
    // Without a Sync nothing more is said.
    assert_eq!(beat(">P >B >Q <1 <E"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >Q <1 <E >Q >S <ZI"), Beat::Quiet);
    // The query's own error is not that of the batch before it.
    assert_eq!(beat(">P >B >Q >Q <1 <2 <E <ZI"), Beat::InFlight);
    assert_eq!(beat(">P >B >Q >Q <1 <2 <E <ZI <C <ZI"), Beat::Quiet);
}

#[test]
fn copy_in_waits_for_the_client() {
    assert_eq!(beat(">Q <G"), Beat::AwaitsClient);
    assert_eq!(beat(">Q <G >d >d >S >H"), Beat::AwaitsClient);
    assert_eq!(beat(">Q <G >d >c"), Beat::InFlight);
    assert_eq!(beat(">Q <G >d >c <C <ZI"), Beat::Quiet);
    assert_eq!(beat(">Q <G >d <E"), Beat::InFlight);
    assert_eq!(beat(">Q <G >d <E <ZI"), Beat::Quiet);
}

#[test]
fn what_is_sent_behind_the_end_of_a_copy_counts_although_the_copy_has_not_begun() {
    let batch = ">P >B >E >d >c >S >P >B >E >S <1 <2 <G <C";
    assert_eq!(beat(&format!("{batch} <ZI")), Beat::InFlight);
    assert_eq!(beat(&format!("{batch} <ZI <1 <2 <C")), Beat::InFlight);
    assert_eq!(beat(&format!("{batch} <ZI <1 <2 <C <ZI")), Beat::Quiet);
    let failing = ">P >B >E >d >c >S >P >B >E >S <1 <2 <G <E <ZI";
    assert_eq!(beat(failing), Beat::InFlight);
    assert_eq!(beat(&format!("{failing} <1 <2 <C <ZI")), Beat::Quiet);
    // A Flush behind it asks for replies that are still to come.
    assert_eq!(beat(">B >E >d >c >S >P >D >H <2 <G <E <ZI"), Beat::InFlight);
    assert_eq!(beat(">B >E >d >c >S >P >D >H <2 <G <E <ZI <1 <T"), Beat::AwaitsClient);
    // Two in a row, and two in a text.
    let twice = ">B >E >d >c >S >B >E >d >c >S <2 <G <C <ZI <2 <G";
    assert_eq!(beat(twice), Beat::InFlight);
    assert_eq!(beat(&format!("{twice} <C <ZI")), Beat::Quiet);
    assert_eq!(beat(">Q >d >c >Q <G <C <ZI"), Beat::InFlight);
    assert_eq!(beat(">Q >d >c >Q <G <C <ZI <C <ZI"), Beat::Quiet);
    // One that fails before it begins, and an end that comes behind the error.
    assert_eq!(beat(">B >E >d >c >S <2 <E <ZI"), Beat::Quiet);
    assert_eq!(beat(">Q <G >d <E >c <ZI"), Beat::Quiet);
    assert_eq!(beat(">Q <G >d <E >c <ZI >B >E >S <2 <G"), Beat::AwaitsClient);
}

#[test]
fn a_sync_sent_before_copy_in_began_does_not_count() {
    assert_eq!(beat(">P >B >E >S <1 <2 <G"), Beat::AwaitsClient);
    // Its Sync was ignored, so the server may be done and hold its reply back.
    assert_eq!(beat(">P >B >E >S <1 <2 <G >d >c"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >E >S <1 <2 <G >d >c <C"), Beat::AwaitsClient);
    assert_eq!(beat(">P >B >E >S <1 <2 <G >d >c <C >S <ZI"), Beat::Quiet);
}

#[test]
fn a_sync_that_crosses_with_a_copy_error_is_settled_by_ready() {
    assert_eq!(beat(">P >B >E >H <1 <2 <G >d >S <E <ZI"), Beat::Quiet);
}

#[test]
fn portals_may_be_suspended_and_notices_change_nothing() {
    assert_eq!(beat(">P >B >E >H <1 <2 <D <s <N <A"), Beat::AwaitsClient);
    assert_eq!(beat(">Q <C <ZI <N <S <A"), Beat::Quiet);
}

/// Clears up what is in doubt, as the relay does; the server's answers until then are `late`.
fn cleared(script: &str, late: &str) -> Pulse {
    let mut pulse = play(script);
    assert!(pulse.holds(), "{pulse:?}");
    let closes = pulse.asks().expect("the server is asked");
    assert_eq!(pulse.beat(), Beat::InFlight);
    let answer = [late.to_owned(), "<3 ".repeat(closes as usize), "<ZI".to_owned()].concat();
    let (mut told, mut kept) = (String::new(), 0);
    for step in answer.split_whitespace() {
        let (tag, first) = (step.as_bytes()[1], step.as_bytes().get(2).copied());
        match pulse.hears(tag, first) {
            Whose::Ours => kept += 1,
            Whose::Client(closes) => {
                told.push_str(&"<3 ".repeat(closes as usize));
                kept -= closes;
                (0..closes).for_each(|_| pulse.received(b'3', None));
                pulse.received(tag, first);
                told.push_str(&format!("{step} "));
            }
        }
    }
    assert_eq!((told.as_str(), kept), (late, closes + 1), "the client hears what is its own");
    pulse
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
        assert_eq!(beat(script), Beat::InFlight, "{script}");
        assert_eq!(cleared(script, "").beat(), Beat::Quiet, "{script}");
        // Or both are.
        assert_eq!(cleared(script, "<ZI ").beat(), Beat::Quiet, "{script}");
    }
    // A batch behind it was sent before anybody has heard of the error: its answers are like those asked for.
    let ahead = ">B >E >S >d >c >S >C >C >S <2 <G <E <ZI";
    assert_eq!(beat(ahead), Beat::InFlight);
    assert_eq!(cleared(&format!("{ahead} <3 <3 <ZI"), "").beat(), Beat::Quiet);
    // A ReadyForQuery before the answers to its batch is another's.
    assert_eq!(beat(&format!("{ahead} <ZI <3 <3")), Beat::InFlight);
    assert_eq!(beat(&format!("{ahead} <ZI <3 <3 <ZI")), Beat::Quiet);
    // Once it has succeeded nothing is in doubt, nor when all have been answered.
    assert_eq!(beat(">B >E >S <2 <G >d >S >c >S <C <ZI"), Beat::Quiet);
    assert_eq!(beat(">B >E >S <2 <G <E <ZI >c >S <ZI"), Beat::Quiet);
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
        let script = format!(">Q <C <ZT {}", format!(">{flood} ").repeat(3 * Pulse::MAX_OWED));
        assert!(!play(&script).is_full(), "{flood}");
        let script = format!(">B >E {}", format!(">{flood} ").repeat(3 * Pulse::MAX_OWED));
        assert!(!play(&script).is_full(), "{flood}");
    }
    assert!(!play(&format!(">Q <G {}", ">S ".repeat(3 * Pulse::MAX_OWED))).is_full());
    assert!(!play(&">B >E >c <2 <C ".repeat(3 * Pulse::MAX_OWED)).is_full());
}
