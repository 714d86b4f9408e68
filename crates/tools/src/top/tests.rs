use pgleash_core::Moment;

use super::*;
use crate::admin_client;

const SNAPSHOT: &str = r#"{"version":"0.1.0","uptime_seconds":7260.0,"action":"reclaim","enforcing":true,"draining":false,
 "flow":"open","observation_age_seconds":0.2,"clients":14,"clients_max":1000,"pools":[
 {"pool":"app@shop","size":20,"utilization_ratio":0.85,"utilization_peak_ratio":1.0,"waiting":2,
  "oldest_checkout_seconds":64.0,"stale":[["idle_in_transaction",1],["slow_statement",3]],"overdue":0,
  "stale_growth_per_second":0.07,"exhaustion_forecast_seconds":380.0,"top_holders":[{"app":"checkout","route":"POST /pay","stale":1,"stale_seconds":22.0}],"holders":[
   {"id":7,"app":"web","client":"10.0.0.1:4","phase":"active","age_seconds":0.1,"idle_seconds":0.0,"backend_pid":70,
    "pinned":null,"suspect":null,"why":"statement in flight","next":"reported as slow after 30.0 s"},
   {"id":5,"app":"checkout\u001b[2J\u202e","client":"10.0.0.2:5","phase":"idle_in_transaction","age_seconds":64.0,
    "idle_seconds":22.0,"backend_pid":50,"route":"POST /pay\u001b","statement":"insert into t values (?)","pinned":null,"suspect":"idle_in_transaction",
    "why":"idle in transaction 22.0 s of 30.0 s","next":"reclaim in 8.0 s","unknown":1}]},
 {"pool":"jobs@shop","size":5,"holders":[{"id":9,"app":"","phase":"held","idle_seconds":3.0,
    "why":"held for a reason: listen","pinned":"listen"}]}]}"#;

fn screen() -> Screen {
    let mut screen = Screen::new("http://127.0.0.1:9632".to_owned());
    screen.take(answer(SNAPSHOT, &[]), Moment::from_secs(100));
    screen
}

fn answer(snapshot: &str, news: &[&str]) -> Result<admin_client::Answer, String> {
    let news = news.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    Ok(admin_client::Answer { view: serde_json::from_str(snapshot).unwrap(), news, anew: false })
}

/// An event about checkout `checkout` of an application that has control characters in its name.
fn event(name: &str, checkout: u64, more: &str) -> String {
    format!(
        r#"{{"time":"2026-01-02T03:04:05.678Z","level":"warn","seq":{checkout},"event":"{name}","pool":"app@shop",
        "reason":"idle_in_transaction","checkout":{checkout},"session":1,"app":"checkout\\u001b","client":"10.0.0.1:4",
        "age_seconds":23.0,"idle_seconds":22.0,"limit_seconds":30.0{more}}}"#
    )
}

fn ids(screen: &Screen) -> Vec<u64> {
    screen.rows().iter().map(|(_, holder)| holder.id).collect()
}

fn drawn(screen: &Screen, now: u64) -> String {
    let mut terminal = Terminal::new(TestBackend::new(160, 28)).unwrap();
    terminal.draw(|frame| draw::draw(frame, screen, Moment::from_secs(now))).unwrap();
    terminal.backend().to_string()
}

#[test]
fn the_suspect_is_on_top_with_what_happens_to_it_next() {
    let text = drawn(&screen(), 101);
    insta::assert_snapshot!(text);
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "nothing acts on the terminal");
}

#[test]
fn old_data_says_so_and_an_answer_ends_that() {
    let mut screen = screen();
    assert!(!drawn(&screen, 102).contains("OLD:"));
    screen.take(Err("connection refused".to_owned()), Moment::from_secs(103));
    assert!(drawn(&screen, 110).contains("DATA IS 9.0 s OLD: connection refused"), "{}", drawn(&screen, 110));
    screen.take(Ok(admin_client::Answer::default()), Moment::from_secs(111));
    assert!(!drawn(&screen, 112).contains("OLD:"));
}

#[test]
fn without_any_data_it_says_why() {
    let mut screen = Screen::new("http://elsewhere:9632".to_owned());
    assert!(drawn(&screen, 0).contains("asking"));
    screen.take(Err("connection refused".to_owned()), Moment::from_secs(1));
    assert!(drawn(&screen, 1).contains("no data: connection refused"));
}

#[test]
fn why_a_pgleash_refuses_is_told_in_its_own_words() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let refusing = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]).unwrap();
        let said = r#"{"error":"add the name to admin_hosts"}"#;
        let head = format!("HTTP/1.1 421 Misdirected Request\r\nContent-Length: {}\r\n\r\n", said.len());
        std::io::Write::write_all(&mut stream, (head + said).as_bytes()).unwrap();
    });
    let why = admin_client::Feed::new(&base).ask().unwrap_err();
    refusing.join().unwrap();
    assert!(why.contains("421") && why.ends_with(": add the name to admin_hosts"), "{why}");
}

#[test]
fn keys_choose_filter_and_end() {
    let mut screen = screen();
    assert_eq!(ids(&screen), [5, 9, 7]);
    for key in [Key::Down, Key::Down, Key::PageDown, Key::Up] {
        assert_eq!(screen.press(key), Going::On);
    }
    let rows = screen.rows();
    assert_eq!(screen.selected(&rows), Some(1));
    assert!(drawn(&screen, 101).contains("checkout 9 of jobs@shop by (no application_name)"));

    screen.press(Key::Suspects);
    assert_eq!(ids(&screen), [5]);
    screen.press(Key::Suspects);
    screen.press(Key::NextPool);
    assert_eq!(ids(&screen), [5, 7]);
    screen.press(Key::NextPool);
    screen.press(Key::NextPool);
    assert_eq!(ids(&screen).len(), 3, "after the last pool all of them");

    screen.press(Key::Search);
    for character in "10.0.0.1 WEB".chars() {
        screen.press(Key::Typed(character));
    }
    assert_eq!(ids(&screen), [7]);
    assert_eq!(screen.press(Key::Escape), Going::On);
    assert_eq!(ids(&screen).len(), 3);
    assert_eq!(screen.press(Key::Escape), Going::Over);
    assert_eq!(screen.press(Key::Quit), Going::Over);
}

#[test]
fn what_was_decided_is_told_with_its_outcome() {
    let mut screen = screen();
    let (taken, out) = (event("leak_detected", 4, ""), event("leak_detected", 5, ""));
    let end = event("leak_resolved", 4, r#","resolution":"reclaimed""#);
    screen.take(answer(SNAPSHOT, &[&taken, &out, &end]), Moment::from_secs(101));
    let text = drawn(&screen, 101);
    let told: Vec<_> = text.lines().filter(|line| line.contains("suspect in app@shop: checkout")).collect();
    assert!(told.len() == 2 && told[0].contains("still out") && told[1].contains("taken back"), "{text}");
    assert!(told[0].contains("03:04:05") && !text.contains('\u{1b}'), "{text}");
    assert!(text.contains("+4.2/min") && text.contains("steady"), "{text}");

    screen.press(Key::NextPool);
    screen.press(Key::NextPool);
    assert!(drawn(&screen, 101).contains("nothing was decided"), "not in the other pool");
    screen.take(
        Ok(admin_client::Answer { anew: true, ..admin_client::Answer::default() }),
        Moment::from_secs(102),
    );
    assert!(drawn(&screen, 102).contains("nothing was decided"), "another process");
}

#[test]
fn a_dry_run_says_what_enforcement_would_have_done() {
    let mut screen = screen();
    let observing = SNAPSHOT.replace(r#""reclaim","enforcing":true"#, r#""observe","enforcing":false"#);
    screen.take(answer(&observing, &[]), Moment::from_secs(101));
    assert!(drawn(&screen, 101).contains("enforcement would have done nothing"), "{}", drawn(&screen, 101));
    let due =
        |checkout, because| event("reclaim_suppressed", checkout, &format!(r#","because":"{because}""#));
    let news = [due(4, "observe"), due(5, "observe"), due(6, "budget")];
    let news: Vec<&str> = news.iter().map(String::as_str).collect();
    screen.take(answer(&observing, &news), Moment::from_secs(101));
    let said = "would have taken back 2 connections, and 1 more were due beyond the budget; 1 of them would be in the pool \
                now; none of them went on later";
    assert!(drawn(&screen, 101).contains(said), "{}", drawn(&screen, 101));
    let wrong = event("leak_resolved", 4, r#","resolution":"returned""#);
    screen.take(answer(&observing, &[&wrong]), Moment::from_secs(101));
    assert!(drawn(&screen, 101).contains("1 would have been wrong"), "{}", drawn(&screen, 101));
}

#[test]
fn it_fits_the_smallest_terminal() {
    for (width, height) in [(1, 1), (20, 5), (80, 24)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw::draw(frame, &screen(), Moment::from_secs(101))).unwrap();
    }
}
