//! The loop with a pool that is only books, on tokio's paused clock.

use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pgleash_core::{
    Action, Activity, CheckoutId, ConnId, Enforcement, Event, Holder, Ledger, Moment, Phase, Policy, PoolKey,
    SessionId, Suppression,
};
use tokio::time::{Instant, sleep};

use crate::{Pool, Watch, keep};

/// Holders that answer at once when they are woken, and a server that says what it is told to.
#[derive(Clone)]
struct Books(Arc<Inner>);

struct Inner {
    watch: Arc<Watch>,
    policy: Mutex<Policy>,
    ledger: Mutex<Ledger<Arc<Activity>>>,
    enforcement: Mutex<Enforcement>,
    told: Mutex<Vec<Event>>,
    looks: Mutex<Vec<Moment>>,
    server_confirms: AtomicBool,
    questions: AtomicUsize,
}

impl Pool for Books {
    type Handle = Arc<Activity>;

    fn policy(&self) -> Arc<Policy> {
        Arc::new(self.0.policy.lock().unwrap().clone())
    }

    fn ledger(&self) -> impl DerefMut<Target = Ledger<Self::Handle>> {
        self.0.ledger.lock().unwrap()
    }

    fn enforcement(&self) -> impl DerefMut<Target = Enforcement> {
        self.0.enforcement.lock().unwrap()
    }

    fn emit(&self, event: Event) {
        self.0.told.lock().unwrap().push(event);
    }

    fn wake(&self, handle: &Self::Handle) {
        handle.answer();
        self.0.watch.attention().notify_one();
    }

    async fn waits_for_client(&self, backend_pid: i32) -> bool {
        assert_eq!(backend_pid, 101);
        self.0.questions.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(100)).await;
        self.0.server_confirms.load(Ordering::Relaxed)
    }

    fn looked(&self, now: Moment) {
        self.0.looks.lock().unwrap().push(now);
    }
}

impl Books {
    fn suppressed(&self) -> Vec<(Suppression, bool)> {
        let told = self.0.told.lock().unwrap();
        let because = |event: &Event| match event {
            Event::ReclaimSuppressed { because, dry_run, .. } => Some((*because, *dry_run)),
            _ => None,
        };
        told.iter().filter_map(because).collect()
    }

    fn looks(&self) -> Vec<Moment> {
        self.0.looks.lock().unwrap().clone()
    }

    fn questions(&self) -> usize {
        self.0.questions.load(Ordering::Relaxed)
    }
}

/// The loop at work on one checkout that is in this phase since 0 s: due after 30 s in a transaction.
async fn scene(phase: Phase, action: Action) -> (Books, Arc<Activity>, tokio::task::JoinHandle<()>) {
    let watch = Arc::new(Watch::default());
    let mut ledger = Ledger::new(PoolKey::new("shop", "app"));
    ledger.dialling(Moment::START);
    ledger.opened(ConnId(1), 101, Moment::from_secs(1800), Moment::START);
    let text = String::new;
    let holder =
        Holder { session: SessionId(1), app: text(), user: text(), database: text(), client: text() };
    let activity = Arc::new(Activity::new());
    activity.begin(Moment::START);
    activity.publish(phase, Moment::START).unwrap();
    let handle = Arc::clone(&activity);
    ledger.checked_out(CheckoutId(1), ConnId(1), Arc::new(holder), handle, Duration::ZERO, Moment::START);
    let books = Books(Arc::new(Inner {
        watch: Arc::clone(&watch),
        policy: Mutex::new(Policy { action, ..Policy::default() }),
        ledger: Mutex::new(ledger),
        enforcement: Mutex::default(),
        told: Mutex::default(),
        looks: Mutex::default(),
        server_confirms: AtomicBool::new(false),
        questions: AtomicUsize::new(0),
    }));
    let (began, pool) = (Instant::now(), books.clone());
    let now = move || Moment::START + began.elapsed();
    let keeping = tokio::spawn(keep(watch, move || vec![pool.clone()], now));
    (books, activity, keeping)
}

async fn pass(seconds: f64) {
    sleep(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn it_takes_what_is_due_when_it_is_due_and_the_holder_has_answered() {
    let (books, activity, _keeping) = scene(Phase::InTransaction, Action::Reclaim).await;
    pass(29.9).await;
    assert!(!activity.is_taken());
    pass(0.2).await;
    assert!(activity.is_taken());
    assert!(books.ledger().reclaimed_for(CheckoutId(1), Moment::from_secs(31)).is_some());
    assert_eq!(books.suppressed(), []);
}

#[tokio::test(start_paused = true)]
async fn where_it_only_observes_it_tells_that_once_and_takes_nothing() {
    let (books, activity, _keeping) = scene(Phase::InTransaction, Action::Observe).await;
    pass(60.0).await;
    assert!(!activity.is_taken());
    assert_eq!(books.suppressed(), [(Suppression::Observe, true)]);
}

#[tokio::test(start_paused = true)]
async fn once_it_is_disarmed_it_takes_nothing_and_says_so_once() {
    let (books, activity, _keeping) = scene(Phase::InTransaction, Action::Reclaim).await;
    books.0.watch.disarm();
    assert!(books.0.watch.is_disarmed());
    pass(60.0).await;
    assert!(!activity.is_taken());
    assert_eq!(books.suppressed(), [(Suppression::Draining, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_wedge_is_asked_about_again_until_the_server_confirms_it() {
    let (books, activity, _keeping) = scene(Phase::AwaitsClient, Action::Reclaim).await;
    pass(33.5).await;
    assert!(!activity.is_taken());
    assert_eq!(books.suppressed(), [(Suppression::Unconfirmed, false)], "told once");
    let asked = books.questions();
    assert!((2..=4).contains(&asked), "a second apart, and one at a time: {asked}");
    books.0.server_confirms.store(true, Ordering::Relaxed);
    pass(3.0).await;
    assert!(activity.is_taken());
    assert!(books.questions() <= asked + 2);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_goes_on_while_the_server_is_asked_keeps_its_connection() {
    let (books, activity, _keeping) = scene(Phase::AwaitsClient, Action::Reclaim).await;
    books.0.server_confirms.store(true, Ordering::Relaxed);
    while books.questions() == 0 {
        pass(0.001).await;
    }
    activity.publish(Phase::AwaitsClient, Moment::from_secs(30)).unwrap();
    pass(0.2).await;
    assert!(!activity.is_taken());
}

#[tokio::test(start_paused = true)]
async fn it_looks_at_least_once_a_second_and_beats_its_heart() {
    let (books, ..) = scene(Phase::InFlight, Action::Reclaim).await;
    pass(10.5).await;
    let looks = books.looks();
    assert!(looks.windows(2).all(|pair| pair[1].since(pair[0]) <= Duration::from_millis(1002)), "{looks:?}");
    assert_eq!(books.0.watch.last_look(), *looks.last().unwrap());
    assert!(looks.len() >= 10, "{looks:?}");
}

#[tokio::test(start_paused = true)]
async fn attention_makes_it_look_at_once() {
    let (books, ..) = scene(Phase::InFlight, Action::Reclaim).await;
    pass(0.3).await;
    let before = books.looks().len();
    books.0.watch.attention().notify_one();
    pass(0.002).await;
    assert_eq!(books.looks().len(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_it_is_told_to_stop() {
    let (books, _activity, keeping) = scene(Phase::InTransaction, Action::Reclaim).await;
    pass(0.3).await;
    books.0.watch.stop();
    tokio::time::timeout(Duration::from_millis(2), keeping).await.expect("at once").unwrap();
    assert_eq!(books.looks().len(), 1);
}
