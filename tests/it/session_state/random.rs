//! Random programs of several clients, on sessions of their own and through pgleash on few connections: each client
//! must see the same. The seed of a program that diverges is printed, with the program cut to what it needs.
//!
//! `PGLEASH_STATE_FUZZ_STEPS` is the number of steps (20,000), `PGLEASH_STATE_FUZZ_SEED` the first seed (1).
//!
//! What may differ: an answer that the pool is exhausted (53300), after which the client begins anew on both sides;
//! `currval` and `lastval` in a later transaction than `nextval`, which are refused (55000) where another client had
//! the connection since; a parameter with a dot that nobody but others has set, which is empty and not unknown.

use std::collections::BTreeMap;

use super::configure;
use super::grammar::{Deed, Form, Login, Random, Step, program};
use crate::support::raw::{self, Frame, Raw, tags};
use crate::support::{Database, Endpoint, Leash, Mode, Server, finish, settled, tick};

/// Everything of a session that a program can touch, in one row.
const PROBE: &str = "SELECT \
    (SELECT string_agg(n || '=' || coalesce(current_setting(n, true), ''), ' ' ORDER BY n) FROM unnest(ARRAY[\
     'work_mem','statement_timeout','lock_timeout','search_path','datestyle','timezone','intervalstyle',\
     'application_name','client_encoding','extra_float_digits','app.tenant','app.user','bytea_output','jit',\
     'default_transaction_isolation','default_transaction_read_only','default_transaction_deferrable','role',\
     'row_security','session_replication_role','standard_conforming_strings','xmloption','default_tablespace']) n), \
    current_user, session_user, \
    (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_catalog.pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'), \
    (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_catalog.pg_cursors WHERE is_holdable), \
    (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_catalog.pg_prepared_statements WHERE from_sql), \
    (SELECT string_agg(objid::text, ' ' ORDER BY objid) FROM pg_catalog.pg_locks \
     WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    (SELECT string_agg(c, ' ' ORDER BY c) FROM pg_catalog.pg_listening_channels() c)";

/// One client's session, with what it was told of parameters.
struct Session {
    raw: Raw,
    told: BTreeMap<String, String>,
    state: char,
}

/// Both sides of one client.
struct Twin {
    login: Login,
    direct: Session,
    through: Session,
    /// It begins anew before it is used next: while the pool is exhausted a login cannot ask the server, so the
    /// session is as old as its first statement.
    is_over: bool,
}

struct Scene {
    direct: Database,
    through: Database,
    leash: Leash,
    sidecar: Endpoint,
}

impl Session {
    async fn login(endpoint: &Endpoint, login: &[(&str, &str)]) -> Session {
        let mut raw = Raw::connect(endpoint.port).await;
        let mut parameters = vec![("user", endpoint.user.as_str()), ("database", &endpoint.database)];
        parameters.extend(login);
        raw.startup(raw::PROTOCOL_3_0, &parameters).await;
        let mut session = Session { raw, told: BTreeMap::new(), state: 'I' };
        session.answer().await;
        session
    }

    /// The answer up to ReadyForQuery, without what is told of parameters, or up to a FATAL.
    async fn answer(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let Some(frame) = self.raw.frame().await else { return frames };
            match frame.tag {
                'S' => {
                    let mut texts = frame.body.split(|byte| *byte == 0);
                    let mut text = || String::from_utf8_lossy(texts.next().unwrap()).into_owned();
                    let name = text();
                    self.told.insert(name, text());
                }
                'K' | 'R' | 'A' => {}
                'E' if frame.field('V') == "FATAL" => {
                    frames.push(frame);
                    return frames;
                }
                'Z' => {
                    self.state = char::from(frame.body[0]);
                    frames.push(frame);
                    return frames;
                }
                _ => frames.push(frame),
            }
        }
    }

    async fn says(&mut self, batch: &[u8]) -> Vec<Frame> {
        self.raw.try_send(batch).await;
        self.answer().await
    }
}

fn refused(frames: &[Frame]) -> bool {
    frames.last().is_none_or(|frame| frame.tag == 'E' && frame.field('C') == "53300")
}

/// What of an answer is compared.
fn shown(frames: &[Frame]) -> Vec<String> {
    let body = |frame: &Frame| match frame.tag {
        'E' | 'N' => format!("{} {}", frame.field('C'), frame.field('M')),
        // The oids of tables differ.
        'T' => String::new(),
        _ => String::from_utf8_lossy(&frame.body).into_owned(),
    };
    frames.iter().map(|frame| format!("{} {}", frame.tag, body(frame))).collect()
}

impl Scene {
    async fn new(server: &Server, size: u64) -> Scene {
        let (direct, through) = (server.database().await, server.database().await);
        for database in [&direct, &through] {
            let admin = database.admin().await;
            admin
                .batch_execute(
                    "CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.which AS SELECT 'a' AS n; \
                     CREATE TABLE b.which AS SELECT 'b' AS n; CREATE SEQUENCE s; \
                     GRANT ALL ON SCHEMA a, b TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA a, b TO PUBLIC; \
                     GRANT ALL ON SEQUENCE s TO PUBLIC",
                )
                .await
                .unwrap();
            admin.close().await;
        }
        let told = ["client_refused", "leak_detected", "checkout_timeout", "upstream_failed"];
        let setup = Leash::on(&through).mode(Mode::Transaction).set("pool.size", size);
        let leash = setup.set("pool.wait_timeout", "60ms").expecting(&told).start().await;
        let sidecar = leash.endpoint().user("postgres");
        Scene { direct, through, leash, sidecar }
    }

    async fn twin(&self, login: &[(&'static str, &'static str)]) -> Twin {
        let direct = Session::login(&self.direct.direct().user("postgres"), login).await;
        let through = Session::login(&self.sidecar, login).await;
        Twin { login: login.to_vec(), direct, through, is_over: false }
    }

    async fn begin(&self, twin: &mut Twin) {
        if twin.is_over {
            let login = twin.login.clone();
            *twin = self.twin(&login).await;
        }
    }

    /// Runs a program; what diverges first, and at which step.
    async fn run(&self, logins: &[Login], steps: &[Step]) -> Option<(usize, String)> {
        let mut twins = Vec::new();
        for login in logins {
            twins.push(self.twin(login).await);
        }
        let mut found = None;
        for (at, step) in steps.iter().enumerate() {
            if let Some(difference) = self.step(&mut twins, step).await {
                found = Some((at, difference));
                break;
            }
        }
        self.administer("RESET ALL").await;
        if steps.iter().any(|step| matches!(step.deed, Deed::Configure(_))) {
            configure(&self.direct, "RESET ALL").await;
        }
        for twin in twins {
            twin.direct.raw.close().await;
            twin.through.raw.close().await;
        }
        found
    }

    /// What the server's administrator does to role and database, on both sides.
    async fn administer(&self, what: &str) {
        for database in [&self.direct, &self.through] {
            let admin = database.admin().await;
            let name = &database.name;
            admin.batch_execute(&format!("ALTER DATABASE {name} {what}")).await.unwrap();
            admin.batch_execute(&format!("ALTER ROLE postgres IN DATABASE {name} {what}")).await.unwrap();
            admin.close().await;
        }
    }

    async fn step(&self, twins: &mut [Twin], step: &Step) -> Option<String> {
        let twin = &mut twins[step.client];
        match &step.deed {
            Deed::Leave { kills } => {
                if !kills {
                    twin.direct.raw.try_send(&raw::terminate()).await;
                    twin.through.raw.try_send(&raw::terminate()).await;
                }
                twin.is_over = true;
                return None;
            }
            Deed::Administer(what) => {
                self.administer(what).await;
                return None;
            }
            Deed::Configure(what) => {
                configure(&self.direct, what).await;
                return None;
            }
            Deed::Says(form, sql) => {
                self.begin(twin).await;
                for batch in form.batches(sql) {
                    let through = twin.through.says(&batch).await;
                    if refused(&through) {
                        twin.is_over = true;
                        return None;
                    }
                    let direct = twin.direct.says(&batch).await;
                    let (direct, through) = (shown(&direct), shown(&through));
                    if direct != through && !is_known(sql, &through) {
                        return Some(format!("direct: {direct:?}\nthrough: {through:?}"));
                    }
                    // What was refused within a transaction has ended it on that side.
                    if twin.direct.state != twin.through.state {
                        twin.is_over = true;
                        return None;
                    }
                }
            }
        }
        let other = (step.client + 1) % twins.len();
        for client in [step.client, other] {
            if let Some(difference) = self.compare(&mut twins[client]).await {
                return Some(format!("of client {client}: {difference}"));
            }
        }
        None
    }

    /// Whether both sides of a client are in the same state.
    async fn compare(&self, twin: &mut Twin) -> Option<String> {
        self.begin(twin).await;
        if twin.direct.state == 'E' {
            return None;
        }
        // A reload reaches each backend when it reaches it.
        let mut last = None;
        for _ in 0..20 {
            let through = twin.through.says(&raw::query(PROBE)).await;
            if refused(&through) {
                twin.is_over = true;
                return None;
            }
            let direct = twin.direct.says(&raw::query(PROBE)).await;
            let (direct, through) = (shown(&direct), shown(&through));
            if direct == through && twin.direct.told == twin.through.told {
                return None;
            }
            last = Some(format!(
                "direct: {direct:?}\nthrough: {through:?}\ntold: {:?}\n  and: {:?}",
                twin.direct.told, twin.through.told
            ));
            if twin.direct.state != 'I' || direct != through {
                break;
            }
            tick().await;
        }
        last
    }
}

/// What is documented to differ.
fn is_known(sql: &str, through: &[String]) -> bool {
    let reads = sql.contains("currval") || sql.contains("lastval");
    reads && through.iter().any(|frame| frame.starts_with("E 55000") || frame.starts_with("E 25P02"))
}

/// Takes away steps as long as the program still diverges.
async fn shrink(server: &Server, size: u64, logins: &[Login], mut steps: Vec<Step>) -> (Vec<Step>, String) {
    let mut difference = String::new();
    let mut chunk = steps.len().div_ceil(2);
    let began = std::time::Instant::now();
    while chunk > 0 {
        let mut at = 0;
        while at < steps.len() && began.elapsed() < SHRINKING {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            let scene = Scene::new(server, size).await;
            match scene.run(logins, &fewer).await {
                Some((last, what)) => {
                    fewer.truncate(last + 1);
                    (steps, difference) = (fewer, what);
                }
                None => at += chunk,
            }
        }
        chunk /= 2;
    }
    (steps, difference)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// A program that diverges is cut for no longer than this.
const SHRINKING: std::time::Duration = std::time::Duration::from_secs(40);

/// A hundred steps for each program.
const STEPS: usize = 100;

/// Parts of the steps that run side by side.
const PARTS: u64 = 4;

macro_rules! parts {
    ($($name:ident = $part:expr),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                each_client_has_a_session_of_its_own($part).await;
            }
        )+
    };
}

parts! {
    each_client_has_a_session_of_its_own_0 = 0,
    each_client_has_a_session_of_its_own_1 = 1,
    each_client_has_a_session_of_its_own_2 = 2,
    each_client_has_a_session_of_its_own_3 = 3,
}

async fn each_client_has_a_session_of_its_own(part: u64) {
    let (steps, first) = (number("PGLEASH_STATE_FUZZ_STEPS", 20_000), number("PGLEASH_STATE_FUZZ_SEED", 1));
    let server = Server::private();
    let mut divergent = Vec::new();
    let mut scenes = BTreeMap::new();
    let seeds = first..first + steps.div_ceil(STEPS as u64);
    for seed in seeds.filter(|seed| seed % PARTS == part) {
        let mut random = Random::new(seed);
        let size = 1 + random.below(3);
        let (logins, steps) = program(&mut random, STEPS);
        let scene = match scenes.remove(&size) {
            Some(scene) => scene,
            None => Scene::new(&server, size).await,
        };
        let Some((last, what)) = scene.run(&logins, &steps).await else {
            scenes.insert(size, scene);
            continue;
        };
        let (steps, difference) = shrink(&server, size, &logins, steps[..=last].to_vec()).await;
        let told: Vec<_> = steps.iter().map(|step| format!("  {step:?}")).collect();
        let difference = if difference.is_empty() { what } else { difference };
        println!("seed {seed}, {size} connections, {logins:?}:\n{}\n{difference}\n", told.join("\n"));
        divergent.push(seed);
        if divergent.len() >= 3 {
            break;
        }
    }
    for Scene { direct, through, leash, .. } in scenes.into_values() {
        settled(&leash).await;
        finish(leash, &through).await;
        direct.remove().await;
    }
    assert!(divergent.is_empty(), "seeds that diverge: {divergent:?}");
}

/// The forms say what they should.
#[test]
fn a_batch_ends_where_an_answer_does() {
    for form in Form::ALL {
        for batch in form.batches("SELECT 1") {
            assert!(batch.starts_with(b"Q") || batch.ends_with(&raw::sync()));
        }
    }
    assert_eq!(tags(&[]), "");
}
