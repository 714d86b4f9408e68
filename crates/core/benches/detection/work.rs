//! The workloads: who comes when, how long statements and pauses take, who leaks.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal};

const WARM_UP: f64 = 900.0;

/// A heavy-tailed time: log-normal by its median, with an end, as timeouts make one.
#[derive(Clone, Copy)]
pub(crate) struct Tail {
    pub median: f64,
    pub sigma: f64,
    pub most: f64,
}

impl Tail {
    fn draw(self, rng: &mut StdRng) -> f64 {
        let tail = LogNormal::new(self.median.ln(), self.sigma).expect("sigma is finite");
        tail.sample(rng).min(self.most)
    }
}

const fn tail(median: f64, sigma: f64, most: f64) -> Tail {
    Tail { median, sigma, most }
}

/// One kind of checkout.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    pub app: &'static str,
    pub route: Option<&'static str>,
    /// Its share of the arrivals.
    pub weight: f64,
    pub statements: (u64, u64),
    pub statement: Tail,
    pub pause: Tail,
    /// The share of pauses outside a transaction, and how long these are: of clients that keep a connection.
    pub think: Option<(f64, Tail)>,
    /// Whether it may leak.
    pub leaky: bool,
}

const WEB: Class = Class {
    app: "shop@3.2.0",
    route: Some("GET /cart"),
    weight: 1.0,
    statements: (2, 6),
    statement: tail(0.004, 0.9, 5.0),
    pause: tail(0.004, 1.2, 3.0),
    think: None,
    leaky: false,
};

/// Calls the payment provider while its transaction is open.
const PAY: Class = Class {
    app: "payments@3.2.1",
    route: Some("POST /pay"),
    statements: (3, 5),
    pause: tail(0.06, 0.9, 2.5),
    weight: 0.3,
    leaky: true,
    ..WEB
};

pub(crate) struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    pub pool: usize,
    /// When what is watched for begins; before it, what is usual can be learned.
    pub begins: f64,
    pub seconds: f64,
    pub classes: &'static [Class],
    /// Arrivals per second.
    pub rate: fn(f64) -> f64,
    /// The share of arrivals of a leaky class that leak.
    pub leaks: fn(f64) -> f64,
    /// By how much statements of a class take longer, and until when at least.
    pub slow: fn(f64, &Class) -> (f64, f64),
    /// Who comes at which time, besides.
    pub extra: fn() -> Vec<(f64, usize)>,
    /// What is asked of it.
    pub asks: Asks,
}

/// Goals beyond those that every workload has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// No healthy checkout is taken, every leak is found, and nothing is foreseen that does not come.
    Usual,
    /// The median delay and the first warning as well.
    Incident,
}

fn none() -> Vec<(f64, usize)> {
    Vec::new()
}

fn as_usual(_: f64, _: &Class) -> (f64, f64) {
    (1.0, 0.0)
}

const fn no_leaks(_: f64) -> f64 {
    0.0
}

/// One leak a minute or so, with forty leaky checkouts a second.
fn some_leaks(t: f64) -> f64 {
    if t < WARM_UP { 0.0 } else { 0.0004 }
}

pub(crate) fn all() -> Vec<Workload> {
    vec![
        steady(),
        incident(),
        incident_cold(),
        batch(),
        think_time(),
        in_app_pool(),
        storm(),
        cron(),
        convoy(),
    ]
}

fn steady() -> Workload {
    Workload {
        name: "steady",
        about: "200 transactions a second, one leak a minute",
        pool: 40,
        begins: WARM_UP,
        seconds: WARM_UP + 1500.0,
        classes: &[WEB, PAY],
        rate: |_| 200.0,
        leaks: some_leaks,
        slow: as_usual,
        extra: none,
        asks: Asks::Usual,
    }
}

/// The share of payments that leak in the incident: one in 20 s.
const INCIDENT_LEAKS: f64 = 0.00115;

/// From 40 % to 85 % in 12 minutes and full in 3 more, for want of a watchdog.
fn incident() -> Workload {
    Workload {
        name: "incident",
        about: "leaks, +40 % traffic from a campaign, indexes dropped by a deployment; 15 min from 40 % to full",
        pool: 100,
        begins: WARM_UP,
        seconds: WARM_UP + 1500.0,
        classes: const {
            &[
                Class { statement: tail(0.03, 0.9, 5.0), ..WEB },
                Class { statement: tail(0.03, 0.9, 5.0), ..PAY },
            ]
        },
        rate: |t| if t < WARM_UP { 130.0 } else { 182.0 },
        leaks: |t| if t < WARM_UP { 0.0 } else { INCIDENT_LEAKS },
        slow: |t, class| {
            let dropped = t >= WARM_UP + 720.0 && class.route == Some("GET /cart");
            (if dropped { 2.0 } else { 1.0 }, 0.0)
        },
        extra: none,
        asks: Asks::Incident,
    }
}

/// The same for a pgleash that has just started and knows nothing.
fn incident_cold() -> Workload {
    Workload {
        name: "incident, cold",
        about: "the incident without the quarter of an hour before it",
        begins: 0.0,
        seconds: 1500.0,
        rate: |_| 182.0,
        leaks: |_| INCIDENT_LEAKS,
        slow: |t, class| {
            let dropped = t >= 720.0 && class.route == Some("GET /cart");
            (if dropped { 2.0 } else { 1.0 }, 0.0)
        },
        asks: Asks::Usual,
        ..incident()
    }
}

/// Transactions of an hour that compute between their statements.
fn batch() -> Workload {
    const NIGHTLY: Class = Class {
        app: "nightly@1",
        route: None,
        weight: 0.0,
        statements: (2000, 2600),
        statement: tail(0.4, 1.0, 60.0),
        pause: tail(0.7, 0.8, 12.0),
        think: None,
        leaky: false,
    };
    Workload {
        name: "batch",
        about: "hour-long transactions at night, beside a shop that leaks a little",
        pool: 40,
        begins: WARM_UP,
        seconds: WARM_UP + 4800.0,
        classes: &[WEB, PAY, NIGHTLY],
        rate: |_| 60.0,
        leaks: some_leaks,
        slow: as_usual,
        extra: || (0..6).map(|n| (WARM_UP + 60.0 * f64::from(n), 2)).collect(),
        asks: Asks::Usual,
    }
}

/// Clients that keep their connection while a person thinks.
fn think_time() -> Workload {
    const PERSON: Class = Class {
        app: "backoffice@7",
        route: None,
        weight: 1.0,
        statements: (20, 60),
        statement: tail(0.01, 1.0, 10.0),
        pause: tail(0.01, 1.0, 3.0),
        think: Some((0.4, tail(9.0, 0.9, 180.0))),
        leaky: true,
    };
    Workload {
        name: "think time",
        about: "people who think with a connection of their own; some never come back",
        pool: 200,
        begins: WARM_UP,
        seconds: WARM_UP + 3600.0,
        classes: &[PERSON],
        rate: |_| 0.5,
        leaks: |t| if t < WARM_UP { 0.0 } else { 0.01 },
        slow: as_usual,
        extra: none,
        asks: Asks::Usual,
    }
}

/// An application's own pool: connections idle for as long as nobody needs them, but for a keepalive.
fn in_app_pool() -> Workload {
    const POOLED: Class = Class {
        app: "orders@5",
        route: None,
        weight: 0.0,
        statements: (1_000_000, 1_000_001),
        statement: tail(0.005, 1.0, 10.0),
        pause: tail(0.005, 1.0, 3.0),
        think: Some((0.3, tail(3.0, 1.6, 120.0))),
        leaky: false,
    };
    Workload {
        name: "in-app pool",
        about: "fifty connections that an application's own pool keeps; idle for up to its keepalive of 2 min",
        pool: 60,
        begins: WARM_UP,
        seconds: WARM_UP + 3600.0,
        classes: &[POOLED],
        rate: |_| 0.0,
        leaks: no_leaks,
        slow: as_usual,
        extra: || (0..50).map(|n| (0.2 * f64::from(n), 0)).collect(),
        asks: Asks::Usual,
    }
}

fn storm() -> Workload {
    Workload {
        name: "storm",
        about: "every five minutes 1,500 clients within ten seconds, for a pool of 30",
        pool: 30,
        begins: WARM_UP,
        seconds: WARM_UP + 1500.0,
        classes: &[WEB, PAY],
        rate: |t| if t % 300.0 < 10.0 { 150.0 + 50.0 } else { 50.0 },
        leaks: no_leaks,
        slow: |t, _| (if t % 300.0 < 10.0 { 8.0 } else { 1.0 }, 0.0),
        extra: none,
        asks: Asks::Usual,
    }
}

/// Jobs that all begin at once and pause between their statements.
fn cron() -> Workload {
    const JOB: Class = Class {
        app: "cron@2",
        route: None,
        weight: 0.0,
        statements: (30, 80),
        statement: tail(0.3, 1.0, 20.0),
        pause: tail(0.5, 0.9, 8.0),
        think: None,
        leaky: false,
    };
    Workload {
        name: "cron",
        about: "thirty jobs at once every five minutes, a minute each, with pauses of seconds",
        pool: 45,
        begins: WARM_UP,
        seconds: WARM_UP + 1800.0,
        classes: &[WEB, PAY, JOB],
        rate: |_| 100.0,
        leaks: some_leaks,
        slow: as_usual,
        extra: || {
            (0..9)
                .flat_map(|n| (0..30).map(move |k| (300.0 * f64::from(n) + 0.05 * f64::from(k), 2)))
                .collect()
        },
        asks: Asks::Usual,
    }
}

/// Somebody pauses with a lock in hand, and everybody waits behind it.
fn convoy() -> Workload {
    const SETTLE: Class = Class {
        app: "payments@3.2.1",
        route: None,
        weight: 0.0,
        statements: (2, 2),
        statement: tail(0.02, 0.5, 1.0),
        pause: tail(12.0, 0.3, 24.0),
        think: None,
        leaky: false,
    };
    Workload {
        name: "convoy",
        about: "every three minutes a settlement pauses for 5 to 24 s with a lock that every payment waits for",
        pool: 40,
        begins: WARM_UP,
        seconds: WARM_UP + 1800.0,
        classes: &[WEB, PAY, SETTLE],
        rate: |_| 60.0,
        leaks: no_leaks,
        slow: |t, class| {
            let since = t % 180.0;
            let waits = class.route == Some("POST /pay") && since < 10.0;
            (1.0, if waits { t - since + 10.0 } else { 0.0 })
        },
        extra: || (0..15).map(|n| (180.0 * f64::from(n), 2)).collect(),
        asks: Asks::Usual,
    }
}

/// What happens next to a checkout that was served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next {
    /// The client pauses, in a transaction or outside of one, and goes on.
    Pause { in_transaction: bool, seconds: f64 },
    /// It comes home.
    Home,
    /// Nothing, ever.
    Leak { in_transaction: bool },
}

/// One checkout's fate, drawn as it goes: the same for every rule.
pub(crate) struct Plan {
    pub class: &'static Class,
    rng: StdRng,
    left: u64,
    leaks: bool,
}

impl Plan {
    /// Arrival number `n` of a trace, at `t`.
    pub(crate) fn new(workload: &Workload, seed: u64, n: u64, t: f64, class: Option<usize>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n);
        let class = match class {
            Some(class) => &workload.classes[class],
            None => {
                let mut at =
                    rng.random::<f64>() * workload.classes.iter().map(|class| class.weight).sum::<f64>();
                workload
                    .classes
                    .iter()
                    .find(|class| {
                        at -= class.weight;
                        at < 0.0
                    })
                    .unwrap_or(&workload.classes[0])
            }
        };
        let left = rng.random_range(class.statements.0..=class.statements.1);
        let leaks = class.leaky && rng.random::<f64>() < (workload.leaks)(t);
        // A leak is lost on the way, not at the end.
        let left = if leaks { rng.random_range(1..=left) } else { left };
        Self { class, rng, left, leaks }
    }

    /// How long its next statement takes.
    pub(crate) fn statement(&mut self, workload: &Workload, t: f64) -> f64 {
        let (times, until) = (workload.slow)(t, self.class);
        (self.class.statement.draw(&mut self.rng) * times).max(until - t)
    }

    /// Its statement is over.
    pub(crate) fn next(&mut self) -> Next {
        self.left -= 1;
        let thinks = self.class.think.filter(|(share, _)| self.rng.random::<f64>() < *share);
        if self.left == 0 {
            return if self.leaks { Next::Leak { in_transaction: thinks.is_none() } } else { Next::Home };
        }
        let pause = thinks.map_or(self.class.pause, |(_, think)| think);
        Next::Pause { in_transaction: thinks.is_none(), seconds: pause.draw(&mut self.rng) }
    }
}
