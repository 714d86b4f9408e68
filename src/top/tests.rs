use super::*;
use crate::ids::Moment;

const SNAPSHOT: &str = r#"{"version":"0.1.0","uptime_seconds":7260.0,"action":"reclaim","enforcing":true,"draining":false,
 "flow":"open","observation_age_seconds":0.2,"clients":14,"clients_max":1000,"pools":[
 {"pool":"app@shop","size":20,"utilization_ratio":0.85,"utilization_peak_ratio":1.0,"waiting":2,
  "oldest_checkout_seconds":64.0,"stale":[["idle_in_transaction",1],["slow_statement",3]],"overdue":0,
  "exhaustion_forecast_seconds":380.0,"top_holders":[{"app":"checkout","route":"POST /pay","stale":1,"stale_seconds":22.0}],"holders":[
   {"id":7,"app":"web","client":"10.0.0.1:4","phase":"active","age_seconds":0.1,"idle_seconds":0.0,"backend_pid":70,
    "pinned":null,"suspect":null,"why":"statement in flight","next":"reported as slow after 30.0 s"},
   {"id":5,"app":"checkout\u001b[2J\u202e","client":"10.0.0.2:5","phase":"idle_in_transaction","age_seconds":64.0,
    "idle_seconds":22.0,"backend_pid":50,"route":"POST /pay\u001b","statement":"insert into t values (?)","pinned":null,"suspect":"idle_in_transaction",
    "why":"idle in transaction 22.0 s of 30.0 s","next":"reclaim in 8.0 s","unknown":1}]},
 {"pool":"jobs@shop","size":5,"holders":[{"id":9,"app":"","phase":"held","idle_seconds":3.0,
    "why":"held for a reason: listen","pinned":"listen"}]}]}"#;

fn screen() -> Screen {
    let mut screen = Screen::new("http://127.0.0.1:9632".to_owned());
    screen.take(Ok(serde_json::from_str(SNAPSHOT).unwrap()), Moment::from_secs(100));
    screen
}

fn ids(screen: &Screen) -> Vec<u64> {
    screen.rows().iter().map(|(_, holder)| holder.id).collect()
}

fn drawn(screen: &Screen, now: u64) -> String {
    let mut terminal = Terminal::new(TestBackend::new(150, 20)).unwrap();
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
    screen.take(Ok(feed::View::default()), Moment::from_secs(111));
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
fn it_fits_the_smallest_terminal() {
    for (width, height) in [(1, 1), (20, 5), (80, 24)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw::draw(frame, &screen(), Moment::from_secs(101))).unwrap();
    }
}
