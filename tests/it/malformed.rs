//! Packets and frames that cannot be. Whoever sends one is told so and let go, the log says what was
//! wrong, and nobody else notices: a bystander keeps its transaction open all the while.

use std::time::Duration;

use crate::bad_input::{undisturbed, with_bystander};
use crate::support::raw::{self, Frame, Raw};
use crate::support::{Leash, Mode, eventually_or, in_both_modes, within};

in_both_modes! {
    malformed_first_packets_are_refused,
    malformed_frames_end_their_session_only,
    what_the_server_finds_malformed_it_says_itself,
}

/// Stands in every input where there is room for it, and must stand nowhere else.
const SECRET: &str = "hunter2";

/// What is sent, the SQLSTATE that comes back, and what the log must say.
struct Input {
    what: &'static str,
    bytes: Vec<u8>,
    code: &'static str,
    clue: &'static str,
}

fn input(what: &'static str, bytes: impl Into<Vec<u8>>, code: &'static str, clue: &'static str) -> Input {
    Input { what, bytes: bytes.into(), code, clue }
}

fn with_length(length: u32, rest: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes(), rest].concat()
}

fn packet(body: &[u8]) -> Vec<u8> {
    with_length(u32::try_from(body.len() + 4).unwrap(), body)
}

/// A startup packet of protocol 3.0 with these bytes behind the version.
fn startup(rest: &str) -> Vec<u8> {
    packet(&[b"\0\x03\0\0", rest.as_bytes()].concat())
}

fn first_packets() -> Vec<Input> {
    let ssl = packet(&raw::SSL_REQUEST.to_be_bytes());
    let gss = packet(&raw::GSSENC_REQUEST.to_be_bytes());
    let cancel = |rest: &[u8]| packet(&[&raw::CANCEL_REQUEST.to_be_bytes(), rest].concat());
    let version = |major: u32, minor: u32| {
        packet(&[&((major << 16) | minor).to_be_bytes(), SECRET.as_bytes()].concat())
    };
    vec![
        input("HTTP", format!("GET /{SECRET} HTTP/1.1\r\nHost: localhost\r\n\r\n"), "08P01", "length"),
        input("a TLS hello", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03hunter2".to_vec(), "08P01", "length"),
        input("SSH", format!("SSH-2.0-{SECRET}\r\n"), "08P01", "length"),
        input("a query", raw::query(&format!("select '{SECRET}'")), "08P01", "length"),
        input("a password", raw::message(b'p', b"hunter2\0"), "08P01", "length"),
        input("zeroes", [0; 64], "08P01", "length"),
        input("all ones", [0xff; 64], "08P01", "length"),
        input("a length of 4", with_length(4, b""), "08P01", "length"),
        input("a length of 7", with_length(7, b"\0\x03\0"), "08P01", "length"),
        input("a length of 10,001", with_length(10_001, b"\0\x03\0\0user\0hunter2\0"), "08P01", "10001"),
        input("a length of 2 GB", with_length(0x7fff_ffff, b"\0\x03\0\0"), "08P01", "length"),
        input("10 MB", with_length(10_000_000, &vec![b'x'; 1_000_000]), "08P01", "length"),
        input("protocol 0.0", version(0, 0), "0A000", "protocol 0.0"),
        input("protocol 1.0", version(1, 0), "0A000", "protocol 1.0"),
        input("protocol 2.0", version(2, 0), "0A000", "protocol 2.0"),
        input("protocol 4.0", version(4, 0), "0A000", "protocol 4.0"),
        input("a code that is none", version(1234, 5677), "0A000", "protocol 1234.5677"),
        input("nothing but a version", startup(""), "08P01", "terminator"),
        input("no parameter", startup("\0"), "28000", "no user"),
        input("no user", startup("database\0hunter2\0\0"), "28000", "no user"),
        input("an empty user", startup("user\0\0database\0hunter2\0\0"), "28000", "no user"),
        input("an unfinished value", startup("user\0hunter2"), "08P01", "terminator"),
        input("no end", startup("user\0hunter2\0"), "08P01", "terminator"),
        input("a key without a value", startup("user\0app\0hunter2\0"), "08P01", "terminator"),
        input("more behind the end", startup("user\0app\0\0hunter2"), "08P01", "after the terminator"),
        input("a user not in UTF-8", packet(b"\0\x03\0\0user\0hunter2\xff\0\0"), "08P01", "UTF-8"),
        input("a key not in UTF-8", packet(b"\0\x03\0\0user\0app\0hunter2\xff\0x\0\0"), "08P01", "UTF-8"),
        input("options: -c and no more", startup("user\0app\0options\0-c\0\0"), "08P01", "options"),
        input("options: no value", startup("user\0app\0options\0-c hunter2\0\0"), "08P01", "options"),
        input("options: another flag", startup("user\0app\0options\0-o hunter2\0\0"), "0A000", "options"),
        input("replication", startup("user\0app\0replication\0true\0\0"), "0A000", "replication"),
        input(
            "replication, logical",
            startup("user\0app\0replication\0database\0\0"),
            "0A000",
            "replication",
        ),
        input("a cancel without a key", cancel(&[0; 4]), "08P01", "cancel"),
        input("a cancel with nothing", cancel(b""), "08P01", "cancel"),
        input("a cancel with a long key", cancel(&[b'k'; 300]), "08P01", "cancel"),
        input(
            "a startup before the answer",
            [ssl.clone(), startup("user\0hunter2\0\0")].concat(),
            "08P01",
            "before the request",
        ),
        input(
            "a startup before the answer about GSSAPI",
            [gss.clone(), startup("user\0hunter2\0\0")].concat(),
            "08P01",
            "before the request",
        ),
        input("one request behind the other", [gss, ssl].concat(), "08P01", "before the request"),
    ]
}

async fn malformed_first_packets_are_refused(mode: Mode) {
    let (database, leash, bystander) = with_bystander(mode).await;
    let inputs = first_packets();
    for input in &inputs {
        let before = refusals(&leash).len();
        let mut client = Raw::connect(leash.port()).await;
        client.try_send(&input.bytes).await;
        if input.clue == "before the request" {
            assert_eq!(client.byte().await, 'N');
        }
        let frames = within(Duration::from_secs(10), input.what, client.until_closed()).await;
        // What was sent and not read may cost the sender the answer: the system resets the connection.
        let unread = input.bytes.len() > 1000 || !frames.is_empty();
        assert!(unread, "{}: not a word", input.what);
        frames.iter().for_each(|frame| is_told(input, frame));
        is_logged(&leash, input, before).await;
        assert_eq!(bystander.one("SELECT count(*) FROM t").await, "1", "{}", input.what);
    }
    // Cut off in mid-packet: that is nobody's fault, and no line in the log.
    let before = refusals(&leash).len();
    for bytes in [&[0, 0][..], &[0, 0, 0, 50, 0, 3], &packet(&raw::SSL_REQUEST.to_be_bytes())] {
        let mut client = Raw::connect(leash.port()).await;
        client.send(bytes).await;
        client.kill();
    }
    assert!(inputs.len() >= 30, "a table of {}", inputs.len());
    keeps_silent(&leash).await;
    assert_eq!(refusals(&leash).len(), before);
    undisturbed(database, leash, bystander).await;
}

fn frames() -> Vec<Input> {
    let lying = |tag: u8, length: u32| [&[tag][..], &length.to_be_bytes(), b"select 'hunter2'\0"].concat();
    vec![
        input("a type that is none", raw::message(b'~', b"hunter2"), "08P01", "message type 126"),
        input("a type of the server", raw::message(b'T', b"hunter2"), "08P01", "message type 84"),
        input("a reply of the server", raw::message(b'Z', b"I"), "08P01", "message type 90"),
        input("a password nobody asked for", raw::message(b'p', b"hunter2\0"), "08P01", "message type 112"),
        input("type 0", raw::message(0, b"hunter2"), "08P01", "message type 0"),
        input("type 255", raw::message(255, b"hunter2"), "08P01", "message type 255"),
        input("HTTP", format!("GET /{SECRET} HTTP/1.1\r\n\r\n"), "08P01", "message type 71"),
        input("a second startup", startup("user\0hunter2\0\0"), "08P01", "message type 0"),
        input("a query of length 0", lying(b'Q', 0), "08P01", "length 0"),
        input("a query of length 3", lying(b'Q', 3), "08P01", "length 3"),
        input("a query of length -1", lying(b'Q', u32::MAX), "08P01", "length 4294967295"),
        input("a query of 2 GB", lying(b'Q', 0x7fff_ffff), "08P01", "length 2147483647"),
        input("a query of 1 GB", lying(b'Q', 0x3fff_ffff), "08P01", "length 1073741823"),
        input("a parse of 1 GB", lying(b'P', 0x4000_0000), "08P01", "length 1073741824"),
        input("a bind of length 1", lying(b'B', 1), "08P01", "length 1"),
        input("copy data of length 2", lying(b'd', 2), "08P01", "length 2"),
        input("copy done of 20 KB", lying(b'c', 20_000), "08P01", "length 20000"),
        input("a copy that fails at length", lying(b'f', 10_001), "08P01", "length 10001"),
        input("a sync of 10,001 bytes", lying(b'S', 10_001), "08P01", "length 10001"),
        input("a flush that is not empty", lying(b'H', 21), "08P01", "length 21"),
        input("a describe of 64 KB", lying(b'D', 0x1_0000), "08P01", "length 65536"),
        input("an execute of 70 KB", lying(b'E', 70_000), "08P01", "length 70000"),
        input("a close of length 0", lying(b'C', 0), "08P01", "length 0"),
        input("a call of 1 GB", lying(b'F', 0x3fff_ffff), "08P01", "length 1073741823"),
    ]
}

/// Where a session is when it goes wrong.
const STATES: [&str; 4] = ["at rest", "in a transaction", "in a batch", "in a copy"];

async fn malformed_frames_end_their_session_only(mode: Mode) {
    let (database, leash, bystander) = with_bystander(mode).await;
    for input in frames() {
        for state in STATES {
            let mut client = leash.endpoint().raw("liar").await;
            bring_into(&mut client, state).await;
            let before = refusals(&leash).len();
            client.send(&input.bytes).await;
            let told = within(Duration::from_secs(10), input.what, client.fatal()).await;
            is_told(&input, &told);
            is_logged(&leash, &input, before).await;
        }
        assert_eq!(bystander.one("SELECT count(*) FROM t").await, "1", "{}", input.what);
    }
    keeps_silent(&leash).await;
    undisturbed(database, leash, bystander).await;
}

async fn bring_into(client: &mut Raw, state: &str) {
    match state {
        "in a transaction" => {
            client.query("BEGIN; INSERT INTO t VALUES (2)").await;
        }
        "in a batch" => {
            client.send(&[raw::parse("", "INSERT INTO t VALUES (3)"), raw::flush()].concat()).await;
            client.expect('1').await;
        }
        "in a copy" => {
            client.send(&raw::query("COPY t FROM STDIN")).await;
            client.expect('G').await;
            client.send(&raw::copy_data("4\n")).await;
        }
        _ => {
            client.query("SELECT 1").await;
        }
    }
}

/// Bodies that do not hold what their type must: the server says so, in its own words, and the
/// session goes on as it would without pgleash.
async fn what_the_server_finds_malformed_it_says_itself(mode: Mode) {
    let (database, leash, bystander) = with_bystander(mode).await;
    let inputs: [(&str, Vec<u8>); 16] = [
        ("a query without its end", raw::message(b'Q', b"select 'hunter2'")),
        ("a query of nothing", raw::message(b'Q', b"")),
        ("a query with more behind", raw::message(b'Q', b"select 1\0hunter2")),
        ("a sync that is not empty", raw::message(b'S', b"hunter2")),
        ("a call of nothing", raw::message(b'F', b"")),
        ("a call that counts wrong", raw::message(b'F', b"\0\0\0\xb1\0\0\0\x05")),
        ("a parse of nothing", synced(b'P', b"")),
        ("a parse without a text", synced(b'P', b"hunter2\0")),
        ("a parse that counts wrong", synced(b'P', b"\0select 1\0\0\x09")),
        ("a bind of nothing", synced(b'B', b"")),
        ("a describe with more behind", synced(b'D', b"Pp\0hunter2")),
        ("a describe of nothing", synced(b'D', b"")),
        ("a describe of no kind", synced(b'D', b"Xhunter2\0")),
        ("a close of no kind", synced(b'C', b"Xhunter2\0")),
        ("an execute without a count", synced(b'E', b"hunter2\0")),
        ("a close of nothing", synced(b'C', b"")),
    ];
    let mut client = leash.endpoint().raw("sloppy").await;
    for (what, bytes) in inputs {
        client.send(&bytes).await;
        let frames = within(Duration::from_secs(10), what, client.until_ready()).await;
        assert_eq!(raw::tags(&frames), "EZ", "{what}");
        assert_eq!(
            (frames[0].field('V').as_str(), frames[0].field('C').as_str()),
            ("ERROR", "08P01"),
            "{what}"
        );
        assert_eq!(client.one("SELECT 'goes on'").await, "goes on", "{what}");
        assert_eq!(bystander.one("SELECT count(*) FROM t").await, "1", "{what}");
    }
    client.close().await;
    keeps_silent(&leash).await;
    undisturbed(database, leash, bystander).await;
}

fn synced(tag: u8, body: &[u8]) -> Vec<u8> {
    [raw::message(tag, body), raw::sync()].concat()
}

fn is_told(input: &Input, frame: &Frame) {
    assert_eq!((frame.tag, frame.field('V')), ('E', "FATAL".to_owned()), "{}", input.what);
    let message = frame.field('M');
    assert_eq!(frame.field('C'), input.code, "{}: {message}", input.what);
    assert!(message.contains(input.clue), "{}: {message}", input.what);
}

/// One line more than `before`, which says what was wrong.
async fn is_logged(leash: &Leash, input: &Input, before: usize) {
    eventually_or(&format!("{} is logged", input.what), async || {
        let refusals = refusals(leash);
        if refusals.len() == before + 1 {
            Ok(())
        } else {
            Err(format!("{} lines, {before} before", refusals.len()))
        }
    })
    .await;
    let told = refusals(leash).pop().unwrap();
    let reason = if input.code == "0A000" { "unsupported" } else { "protocol" };
    assert_eq!((&told["level"], &told["reason"]), (&"warn".into(), &reason.into()), "{}: {told}", input.what);
    assert!(told["detail"].as_str().unwrap().contains(input.clue), "{}: {told}", input.what);
}

fn refusals(leash: &Leash) -> Vec<serde_json::Value> {
    leash.events_named("client_refused")
}

/// Nothing of what was sent is shown anywhere.
async fn keeps_silent(leash: &Leash) {
    let mut shown = vec![leash.stderr()];
    shown.extend(leash.events().iter().map(ToString::to_string));
    for page in ["/", "/metrics", "/api/v1/snapshot", "/api/v1/events"] {
        shown.push(leash.get(page).await.1);
    }
    for text in shown {
        assert!(!text.contains(SECRET), "what a client sent is shown: {text}");
    }
}
