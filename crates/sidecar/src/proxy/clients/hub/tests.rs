use super::*;
use crate::config::Upstream;
use crate::upstream::connector::{Outage, Tls};

/// A sink that only lists the pools that were opened.
#[derive(Default)]
struct Told(Mutex<Vec<PoolKey>>);

impl Sink for Told {
    fn emit(&self, event: Event) {
        if let Event::PoolOpened { pool, .. } = event {
            lock(&self.0).push(pool);
        }
    }
}

fn hub(max_clients: usize) -> (Hub, Arc<Told>) {
    let upstream = Upstream::parse("postgres://app@127.0.0.1:1/app").unwrap();
    let target = Target {
        postgres: upstream.postgres.clone(),
        tls: Tls::Disable,
        attrs: upstream.attrs,
        outage: Outage::none(),
        passwords: Arc::default(),
    };
    let told = Arc::new(Told::default());
    let sink: Arc<dyn Sink> = told.clone();
    let config = Config { max_clients, ..Config::new(upstream) };
    let credentials = Credentials::load(&config, &target).unwrap();
    (Hub::new(config, target, credentials, sink), told)
}

fn vars(value: &str) -> Vars {
    Vars::from([("application_name".to_owned(), value.to_owned())])
}

#[test]
fn clients_are_let_in_up_to_the_limit_and_get_numbers_of_their_own() {
    let (hub, _) = hub(3);
    let mut ids = HashSet::new();
    for _ in 0..3 {
        ids.insert(hub.enter(CancelKey::new(2)).expect("there is room").0);
    }
    assert_eq!((ids.len(), hub.clients()), (3, 3));
    assert!(hub.enter(CancelKey::new(2)).is_none());
    hub.forget(SessionId(2));
    hub.forget(SessionId(2));
    let (id, _) = hub.enter(CancelKey::new(2)).expect("there is room again");
    assert!(ids.insert(id), "a number is not used again at once");
}

#[test]
fn numbers_start_over_as_positive_process_ids_and_skip_those_in_use() {
    let (hub, _) = hub(10);
    let (first, _) = hub.enter(CancelKey::new(2)).unwrap();
    assert_eq!(first, SessionId(1));
    hub.next_session.store(0x7fff_ffff, Ordering::Relaxed);
    assert_eq!(hub.enter(CancelKey::new(2)).unwrap().0, SessionId(0x7fff_ffff));
    assert_eq!(hub.enter(CancelKey::new(2)).unwrap().0, SessionId(2), "0 is nobody, and 1 is in use");
}

#[test]
fn only_who_knows_the_secret_reaches_a_session() {
    let (hub, _) = hub(10);
    let (id, handle) = hub.enter(CancelKey::new(2)).unwrap();
    let secret = handle.key.bytes();
    let mut near = secret.to_vec();
    near[31] ^= 1;
    assert!(hub.session(id.0, secret).is_some_and(|found| Arc::ptr_eq(&found, &handle)));
    assert!(hub.session(id.0, &near).is_none());
    assert!(hub.session(id.0, &secret[..3]).is_none());
    assert!(hub.session(id.0 + 1, secret).is_none());
    hub.forget(id);
    assert!(hub.session(id.0, secret).is_none());
}

#[test]
fn a_drain_reaches_those_who_are_here_and_those_who_come() {
    let (hub, _) = hub(10);
    let (_, before) = hub.enter(CancelKey::new(2)).unwrap();
    assert!(!before.orders.is_draining() && hub.ready().is_ok());
    hub.begin_drain();
    let (_, after) = hub.enter(CancelKey::new(2)).unwrap();
    assert!(before.orders.is_draining() && after.orders.is_draining() && !after.orders.is_cut());
    assert_eq!(hub.ready(), Err("draining".to_owned()));
    assert!(!hub.snapshot().enforcing);
    hub.cut_all();
    assert!(before.orders.is_cut() && after.orders.is_cut());
}

#[tokio::test]
async fn pools_are_opened_up_to_a_limit_and_never_twice() {
    let (hub, told) = hub(10);
    let key = |n: usize| PoolKey::new(&format!("db{n}"), "app");
    let mut used = Vec::new();
    for n in 0..MAX_POOLS {
        let pool = hub.new_pool(&key(n)).expect("there is room");
        assert!(hub.known_pool(&key(n)).is_none(), "not before its first connection");
        used.push(hub.enter_pool(pool));
    }
    assert!(hub.new_pool(&key(MAX_POOLS)).is_none());
    assert_eq!((hub.pools().len(), lock(&told.0).len()), (MAX_POOLS, MAX_POOLS));
    drop(used);
    assert!(hub.new_pool(&key(MAX_POOLS)).is_some(), "pools that nobody uses make room");
}

#[tokio::test]
async fn two_that_open_the_same_pool_share_it() {
    let (hub, told) = hub(10);
    let key = PoolKey::new("shop", "app");
    let (first, second) = (hub.new_pool(&key).unwrap(), hub.new_pool(&key).unwrap());
    assert!(first.is(&second));
    let (entered, kept) = (hub.enter_pool(first), hub.enter_pool(second));
    assert!(entered.is(&kept));
    assert_eq!(*lock(&told.0), [key]);
}

#[test]
fn parameters_that_are_alike_are_one() {
    let (hub, _) = hub(10);
    let (a, b) = (hub.shared_vars(vars("pay")), hub.shared_vars(vars("pay")));
    assert!(Arc::ptr_eq(&a, &b));
    assert!(!Arc::ptr_eq(&a, &hub.shared_vars(vars("ship"))));
    for n in 0..2 * MAX_ALIKE {
        hub.shared_vars(vars(&n.to_string()));
        assert!(lock(&hub.alike).len() <= MAX_ALIKE, "what is remembered has a bound");
    }
    assert_eq!(*hub.shared_vars(vars("pay")), *a);
}
