//! The protocol in all its corners: each story must end the same on plain Postgres and through
//! pgleash in both pool modes.

use futures_util::{SinkExt, StreamExt, pin_mut};
use tokio_postgres::NoTls;

use crate::support::raw::{
    self, CANCEL_REQUEST, GSSENC_REQUEST, PROTOCOL_3_0, PROTOCOL_3_2, Raw, SSL_REQUEST, rows, tags,
};
use crate::support::{Stage, eventually, everywhere, sqlstate};

everywhere! {
    simple_queries_one_and_many,
    an_error_leaves_the_session_usable,
    extended_queries_with_parameters,
    typed_values_survive_both_ways,
    a_transaction_commits_and_another_rolls_back,
    copy_in_and_out,
    a_failed_copy_changes_nothing,
    pipelined_statements_answer_in_order,
    pipelined_syncs_each_get_a_ready,
    flush_brings_answers_without_a_sync,
    an_error_in_a_pipeline_skips_to_the_sync,
    an_error_in_a_simple_batch_stops_it,
    a_portal_is_read_in_parts,
    an_empty_query_is_answered,
    a_notice_arrives,
    listen_hears_notify,
    a_function_call_is_answered,
    many_small_rows_pass,
    ssl_and_gss_are_answered_and_the_login_goes_on,
    protocol_3_2_is_spoken_or_negotiated_down,
    an_unknown_option_is_named,
    the_server_version_is_reported,
    a_client_is_greeted_with_the_encoding_it_gets,
    a_frame_may_come_byte_by_byte,
    cancel_ends_the_right_statement,
    a_cancel_with_a_wrong_key_does_nothing,
}

async fn simple_queries_one_and_many(stage: &Stage) {
    let mut client = stage.endpoint().raw("simple").await;
    let frames = client.query("SELECT 1 AS a, 'two' AS b, NULL AS c").await;
    assert_eq!(tags(&frames), "TDCZ");
    assert_eq!(rows(&frames), [[Some("1".to_owned()), Some("two".to_owned()), None]]);
    let frames = client.query("SELECT 1; SELECT 2; SELECT 3").await;
    assert_eq!(tags(&frames), "TDCTDCTDCZ");
    client.close().await;
}

async fn an_error_leaves_the_session_usable(stage: &Stage) {
    let client = stage.endpoint().connect("errors").await;
    let error = client.try_one("SELECT 1/0").await.unwrap_err();
    assert_eq!(sqlstate(&error), "22012");
    let error = client.try_one("SELEC 1").await.unwrap_err();
    assert_eq!(sqlstate(&error), "42601");
    assert_eq!(client.one("SELECT 'still here'").await, "still here");
    client.close().await;
}

async fn extended_queries_with_parameters(stage: &Stage) {
    let client = stage.endpoint().connect("extended").await;
    let statement = client.prepare("SELECT $1::int + $2::int, upper($3)").await.unwrap();
    for n in 0..20 {
        let row = client.query_one(&statement, &[&n, &1, &"x"]).await.unwrap();
        assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (n + 1, "X"));
    }
    let rows = client.query("SELECT g FROM generate_series(1, $1) g", &[&100]).await.unwrap();
    assert_eq!(rows.len(), 100);
    client.close().await;
}

async fn typed_values_survive_both_ways(stage: &Stage) {
    let client = stage.endpoint().connect("types").await;
    let bytes: Vec<u8> = (0..=255).collect();
    let row = client
        .query_one(
            "SELECT $1::bytea, $2::float8, $3::text[], $4::bool, $5::int8",
            &[&bytes, &0.1f64, &vec!["a", "ß", "漢"], &None::<bool>, &i64::MIN],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, Vec<u8>>(0), bytes);
    assert_eq!(row.get::<_, f64>(1), 0.1);
    assert_eq!(row.get::<_, Vec<String>>(2), ["a", "ß", "漢"]);
    assert_eq!(row.get::<_, Option<bool>>(3), None);
    assert_eq!(row.get::<_, i64>(4), i64::MIN);
    client.close().await;
}

async fn a_transaction_commits_and_another_rolls_back(stage: &Stage) {
    let client = stage.endpoint().connect("transactions").await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    for (n, end) in [(1, "COMMIT"), (2, "ROLLBACK")] {
        client.batch_execute("BEGIN").await.unwrap();
        client.execute("INSERT INTO t VALUES ($1)", &[&n]).await.unwrap();
        client.batch_execute(end).await.unwrap();
    }
    assert_eq!(client.one("SELECT string_agg(n::text, ',') FROM t").await, "1");
    client.close().await;
}

async fn copy_in_and_out(stage: &Stage) {
    let client = stage.endpoint().connect("copy").await;
    client.batch_execute("CREATE TABLE t (n int, s text)").await.unwrap();
    let sink = client.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN").await.unwrap();
    pin_mut!(sink);
    for chunk in 0..100 {
        let lines: String = (0..100).map(|n| format!("{}\trow {n}\n", chunk * 100 + n)).collect();
        sink.send(lines.into()).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 10_000);
    let out = client.copy_out("COPY (SELECT * FROM t ORDER BY n) TO STDOUT").await.unwrap();
    pin_mut!(out);
    let mut text = Vec::new();
    while let Some(chunk) = out.next().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().count(), 10_000);
    assert_eq!(text.lines().last(), Some("9999\trow 99"));
    assert_eq!(client.one("SELECT count(*) FROM t").await, "10000");
    client.close().await;
}

async fn a_failed_copy_changes_nothing(stage: &Stage) {
    let mut client = stage.endpoint().raw("copy-fail").await;
    client.query("CREATE TABLE t (n int)").await;
    client.send(&raw::query("COPY t FROM STDIN")).await;
    client.expect('G').await;
    client.send(&[raw::copy_data("1\n"), raw::copy_fail("the client thought better of it")].concat()).await;
    let frames = client.until_ready().await;
    assert_eq!(tags(&frames), "EZ");
    assert_eq!(frames[0].field('C'), "57014");
    // A Sync sent while the server is in COPY is ignored: it gets no ReadyForQuery of its own.
    client.send(&raw::query("COPY t FROM STDIN")).await;
    client.expect('G').await;
    client.send(&[raw::sync(), raw::flush(), raw::copy_data("2\n"), raw::copy_done()].concat()).await;
    assert_eq!(tags(&client.until_ready().await), "CZ");
    // Data that the server refuses: what is still sent of the COPY is discarded.
    client.send(&raw::query("COPY t FROM STDIN")).await;
    client.expect('G').await;
    client.send(&[raw::copy_data("not a number\n"), raw::copy_data("3\n"), raw::copy_done()].concat()).await;
    let frames = client.until_ready().await;
    assert_eq!((tags(&frames).as_str(), frames[0].field('C').as_str()), ("EZ", "22P02"));
    assert_eq!(client.one("SELECT string_agg(n::text, ',') FROM t").await, "2");
    // COPY through the extended protocol ends with a Sync after CopyDone.
    let begin =
        [raw::parse("", "COPY t FROM STDIN"), raw::bind("", &[]), raw::execute(0), raw::flush()].concat();
    client.send(&begin).await;
    for tag in ['1', '2', 'G'] {
        client.expect(tag).await;
    }
    client.send(&[raw::copy_data("4\n"), raw::copy_done(), raw::sync()].concat()).await;
    assert_eq!(tags(&client.until_ready().await), "CZ");
    // And so does a COPY that fails: the server skips to that Sync.
    client.send(&begin).await;
    for tag in ['1', '2', 'G'] {
        client.expect(tag).await;
    }
    client.send(&[raw::copy_data("bad\n"), raw::copy_done(), raw::sync()].concat()).await;
    assert_eq!(tags(&client.until_ready().await), "EZ");
    assert_eq!(client.one("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "2,4");
    client.close().await;
}

async fn pipelined_statements_answer_in_order(stage: &Stage) {
    let mut client = stage.endpoint().raw("pipeline").await;
    let mut batch = Vec::new();
    for n in 0..200 {
        let n = n.to_string();
        batch.extend([raw::parse("", "SELECT $1::text"), raw::bind("", &[&n]), raw::execute(0)].concat());
    }
    batch.extend(raw::sync());
    client.send(&batch).await;
    let frames = client.until_ready().await;
    assert_eq!(tags(&frames), "12DC".repeat(200) + "Z");
    let numbers: Vec<String> = rows(&frames).into_iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(numbers, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    client.close().await;
}

async fn pipelined_syncs_each_get_a_ready(stage: &Stage) {
    let mut client = stage.endpoint().raw("many-syncs").await;
    client.query("CREATE TABLE t (n int)").await;
    let one = |sql: &str| [raw::parse("", sql), raw::bind("", &[]), raw::execute(0), raw::sync()].concat();
    let batch = [
        one("INSERT INTO t VALUES (1)"),
        one("SELECT 1/0"),
        raw::query("INSERT INTO t VALUES (2)"),
        one("BEGIN"),
        one("INSERT INTO t VALUES (3)"),
        one("COMMIT"),
        raw::sync(),
    ];
    client.send(&batch.concat()).await;
    let mut states = Vec::new();
    for _ in 0..batch.len() {
        let frames = client.until_ready().await;
        states.push(frames.last().unwrap().body[0] as char);
    }
    assert_eq!(states.iter().collect::<String>(), "IIITTII");
    assert_eq!(client.one("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1,2,3");
    client.close().await;
}

async fn flush_brings_answers_without_a_sync(stage: &Stage) {
    let mut client = stage.endpoint().raw("flush").await;
    client.send(&[raw::parse("", "SELECT 'flushed'"), raw::flush()].concat()).await;
    client.expect('1').await;
    client.send(&[raw::bind("", &[]), raw::flush()].concat()).await;
    client.expect('2').await;
    client.send(&[raw::execute(0), raw::flush()].concat()).await;
    assert_eq!(client.expect('D').await.columns(), [Some("flushed".to_owned())]);
    client.expect('C').await;
    client.send(&raw::sync()).await;
    assert_eq!(client.expect('Z').await.body[0], b'I');
    client.close().await;
}

async fn an_error_in_a_pipeline_skips_to_the_sync(stage: &Stage) {
    let mut client = stage.endpoint().raw("skip").await;
    client.query("CREATE TABLE t (n int)").await;
    let one = |sql: &str| [raw::parse("", sql), raw::bind("", &[]), raw::execute(0)].concat();
    let batch =
        [one("INSERT INTO t VALUES (1)"), one("SELECT 1/0"), one("INSERT INTO t VALUES (2)"), raw::sync()];
    client.send(&batch.concat()).await;
    let frames = client.until_ready().await;
    // The division is folded while the portal is made, so the error comes at Bind.
    assert_eq!(tags(&frames), "12C1EZ");
    assert_eq!(frames[4].field('C'), "22012");
    // The implicit transaction of the batch is gone as a whole.
    assert_eq!(client.one("SELECT count(*) FROM t").await, "0");
    // In a transaction block the error leaves it failed until ROLLBACK.
    client.query("BEGIN").await;
    client.send(&[one("SELECT 1/0"), raw::sync()].concat()).await;
    assert_eq!(client.until_ready().await.last().unwrap().body[0], b'E');
    let frames = client.query("SELECT 1").await;
    assert_eq!(frames[0].field('C'), "25P02");
    assert_eq!(client.query("ROLLBACK").await.last().unwrap().body[0], b'I');
    client.close().await;
}

async fn an_error_in_a_simple_batch_stops_it(stage: &Stage) {
    let mut client = stage.endpoint().raw("batch").await;
    client.query("CREATE TABLE t (n int)").await;
    let frames = client.query("INSERT INTO t VALUES (1); SELECT 1/0; INSERT INTO t VALUES (2)").await;
    assert_eq!(tags(&frames), "CEZ");
    assert_eq!(client.one("SELECT count(*) FROM t").await, "0");
    client.close().await;
}

async fn a_portal_is_read_in_parts(stage: &Stage) {
    let mut client = stage.endpoint().raw("portal").await;
    let sql = "SELECT g FROM generate_series(1, 5) g";
    client.send(&[raw::parse("", sql), raw::bind("", &[]), raw::execute(2), raw::flush()].concat()).await;
    let mut seen = String::new();
    while !seen.ends_with('s') {
        seen.push(client.frame().await.unwrap().tag);
    }
    assert_eq!(seen, "12DDs");
    client.send(&[raw::execute(2), raw::execute(0), raw::sync()].concat()).await;
    assert_eq!(tags(&client.until_ready().await), "DDsDCZ");
    client.close().await;
}

async fn an_empty_query_is_answered(stage: &Stage) {
    let mut client = stage.endpoint().raw("empty").await;
    assert_eq!(tags(&client.query("").await), "IZ");
    client.send(&raw::sync()).await;
    assert_eq!(tags(&client.until_ready().await), "Z");
    assert_eq!(client.one("SELECT 1").await, "1");
    client.close().await;
}

async fn a_notice_arrives(stage: &Stage) {
    let mut client = stage.endpoint().connect("notice").await;
    client.batch_execute("DO $$ BEGIN RAISE NOTICE 'mind the gap'; END $$").await.unwrap();
    assert_eq!(client.notice().await, "mind the gap");
    client.close().await;
}

async fn listen_hears_notify(stage: &Stage) {
    let mut listener = stage.endpoint().connect("listener").await;
    let speaker = stage.endpoint().connect("speaker").await;
    listener.batch_execute("LISTEN news").await.unwrap();
    for n in 0..3 {
        // The listener sends nothing: what it hears comes unasked.
        speaker.batch_execute(&format!("NOTIFY news, 'item {n}'")).await.unwrap();
        let heard = listener.notification().await;
        assert_eq!((heard.channel(), heard.payload()), ("news", format!("item {n}").as_str()));
    }
    assert_eq!(listener.one("SELECT 1").await, "1");
    listener.close().await;
    speaker.close().await;
}

async fn a_function_call_is_answered(stage: &Stage) {
    let mut client = stage.endpoint().raw("function").await;
    let oid = client.one("SELECT 'int4pl'::regproc::oid").await.parse().unwrap();
    client.send(&raw::function_call(oid, &["40", "2"])).await;
    let frames = client.until_ready().await;
    assert_eq!(tags(&frames), "VZ");
    assert_eq!(&frames[0].body[4..], b"42");
    client.send(&raw::function_call(oid, &["40", "two"])).await;
    assert_eq!(tags(&client.until_ready().await), "EZ");
    client.close().await;
}

async fn many_small_rows_pass(stage: &Stage) {
    let client = stage.endpoint().connect("many-rows").await;
    let rows =
        client.query("SELECT g, repeat('z', g % 97) FROM generate_series(1, 200000) g", &[]).await.unwrap();
    assert_eq!(rows.len(), 200_000);
    for (at, row) in rows.iter().enumerate() {
        let n = i32::try_from(at + 1).unwrap();
        assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1).len()), (n, (at + 1) % 97));
    }
    client.close().await;
}

async fn ssl_and_gss_are_answered_and_the_login_goes_on(stage: &Stage) {
    let endpoint = stage.endpoint();
    let mut client = Raw::connect(endpoint.port).await;
    if stage.leash().is_some() {
        // A server that was built with GSSAPI may say yes; pgleash says no.
        client.send_untagged(&GSSENC_REQUEST.to_be_bytes()).await;
        assert_eq!(client.byte().await, 'N');
    }
    client.send_untagged(&SSL_REQUEST.to_be_bytes()).await;
    assert_eq!(client.byte().await, 'N');
    client.startup(PROTOCOL_3_0, &[("user", &endpoint.user), ("database", &endpoint.database)]).await;
    let frames = client.until_ready().await;
    client.learn(&frames);
    assert_eq!(client.one("SELECT 1").await, "1");
    client.close().await;
}

/// By a server before PostgreSQL 18 it is negotiated down; pgleash speaks it with its clients.
async fn protocol_3_2_is_spoken_or_negotiated_down(stage: &Stage) {
    let endpoint = stage.endpoint();
    let mut client = Raw::connect(endpoint.port).await;
    client.startup(PROTOCOL_3_2, &[("user", &endpoint.user), ("database", &endpoint.database)]).await;
    let frames = client.until_ready().await;
    client.learn(&frames);
    match frames.iter().find(|frame| frame.tag == 'v') {
        Some(negotiation) => {
            assert!(stage.leash().is_none());
            assert_eq!(negotiation.body[..4], PROTOCOL_3_0.to_be_bytes());
            assert_eq!(negotiation.body[4..], 0u32.to_be_bytes());
            assert_eq!(client.secret.len(), 4);
        }
        None => assert_eq!(client.secret.len(), 32),
    }
    assert_eq!(client.one("SELECT 1").await, "1");
    client.close().await;
}

async fn an_unknown_option_is_named(stage: &Stage) {
    let endpoint = stage.endpoint();
    let mut client = Raw::connect(endpoint.port).await;
    let parameters =
        [("user", endpoint.user.as_str()), ("database", &endpoint.database), ("_pq_.novelty", "1")];
    client.startup(PROTOCOL_3_0, &parameters).await;
    let frames = client.until_ready().await;
    let negotiation = frames.iter().find(|frame| frame.tag == 'v').expect("a NegotiateProtocolVersion");
    assert_eq!(negotiation.body[4..], *b"\0\0\0\x01_pq_.novelty\0");
    assert!(tags(&frames).ends_with("KZ"));
    client.close().await;
}

async fn the_server_version_is_reported(stage: &Stage) {
    let mut client = stage.endpoint().raw("parameters").await;
    let version = client.one("SHOW server_version").await;
    for (name, expected) in [
        ("server_version", version.as_str()),
        ("client_encoding", "UTF8"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("application_name", "parameters"),
        ("session_authorization", "app"),
    ] {
        let told = client.parameters.iter().find(|(key, _)| key == name);
        assert_eq!(told.map(|(_, value)| value.as_str()), Some(expected), "{name}");
    }
    client.close().await;
}

async fn a_frame_may_come_byte_by_byte(stage: &Stage) {
    let mut client = stage.endpoint().raw("bytes").await;
    let batch = [
        raw::parse("", "SELECT $1::text"),
        raw::bind("", &["slow"]),
        raw::execute(0),
        raw::sync(),
        raw::query("SELECT 'last'"),
    ];
    for byte in batch.concat() {
        client.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(tags(&client.until_ready().await), "12DCZ");
    assert_eq!(tags(&client.until_ready().await), "TDCZ");
    client.close().await;
}

async fn cancel_ends_the_right_statement(stage: &Stage) {
    let endpoint = stage.endpoint();
    let victim = endpoint.connect("victim").await;
    let bystander = endpoint.connect("bystander").await;
    let admin = stage.database.admin().await;
    let token = victim.cancel_token();
    let cancel = async {
        let sleeping = "SELECT count(*) FROM pg_stat_activity \
                        WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep%' AND state = 'active'";
        eventually("both sleep", async || (admin.one(sleeping).await == "2").then_some(())).await;
        token.cancel_query(NoTls).await.unwrap();
    };
    let (cancelled, finished, ()) = tokio::join!(
        victim.try_one("SELECT pg_sleep(60)"),
        bystander.try_one("SELECT pg_sleep(1.5)"),
        cancel
    );
    assert_eq!(sqlstate(&cancelled.unwrap_err()), "57014");
    finished.expect("the other statement was left alone");
    assert_eq!(victim.one("SELECT 'usable'").await, "usable");
    victim.close().await;
    bystander.close().await;
    admin.close().await;
}

async fn a_cancel_with_a_wrong_key_does_nothing(stage: &Stage) {
    let endpoint = stage.endpoint();
    let mut client = endpoint.raw("keyed").await;
    client.send(&raw::query("SELECT pg_sleep(1)")).await;
    let mut stranger = Raw::connect(endpoint.port).await;
    let mut packet = CANCEL_REQUEST.to_be_bytes().to_vec();
    packet.extend(client.pid.to_be_bytes());
    packet.extend(client.secret.iter().map(|byte| byte ^ 0x55));
    stranger.send_untagged(&packet).await;
    // The stranger is told nothing, as the protocol has it.
    assert!(stranger.until_closed().await.is_empty());
    assert_eq!(tags(&client.until_ready().await), "TDCZ");
    client.close().await;
}

async fn a_client_is_greeted_with_the_encoding_it_gets(stage: &Stage) {
    let endpoint = stage.endpoint();
    for _ in 0..2 {
        let mut client = Raw::connect(endpoint.port).await;
        let mut startup = vec![("user", endpoint.user.as_str()), ("database", &endpoint.database)];
        startup.extend([("client_encoding", "iso-8859-1"), ("DateStyle", "German")]);
        client.startup(PROTOCOL_3_0, &startup).await;
        let frames = client.until_ready().await;
        client.learn(&frames);
        let told = |name: &str| client.parameters.iter().rfind(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(told("client_encoding"), "LATIN1");
        assert_eq!(told("DateStyle"), "German, DMY");
        client.send(&raw::query("SELECT U&'\\00E9'")).await;
        let row = client.until_ready().await.into_iter().find(|frame| frame.tag == 'D').unwrap();
        assert_eq!(row.body.last(), Some(&0xe9), "one byte in Latin 1");
        client.close().await;
    }
}
