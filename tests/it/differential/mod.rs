//! The same conversation with Postgres and through pgleash must be the same, frame by frame.
//!
//! `talks/` holds the conversations, by topic; `notation.rs` says how they are written. Each is played
//! on plain Postgres, and through pgleash in session mode, in transaction mode, and in transaction
//! mode on a single server connection that a second client uses whenever the first is at rest, with
//! what the first sends cut into small pieces. The replies are compared tag by tag and byte by byte;
//! what may differ, and why, is in `compare.rs`.

mod compare;
mod large;
mod notation;
mod play;
mod second;

use crate::support::{Database, Leash, Mode, Server, Session, finish};

use self::compare::difference;
use self::notation::Talk;
use self::play::{Manner, Played, play};
use self::second::Second;

/// Declares a test for each file of conversations.
macro_rules! topics {
    ($($topic:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $topic() {
                compare_all(stringify!($topic), include_str!(concat!("talks/", stringify!($topic), ".txt"))).await;
            }
        )+

        /// Every topic, for those who count.
        const TOPICS: &[&str] = &[$(include_str!(concat!("talks/", stringify!($topic), ".txt"))),+];
    };
}

topics! {
    simple, extended, pipelines, errors, portals, copy, prepared, transactions, settings, notices, startup,
    limits, endings, functions,
}

/// The suite is as large as it claims to be, and no two conversations have one name.
#[test]
fn there_are_enough_conversations() {
    let mut names: Vec<String> =
        TOPICS.iter().flat_map(|topic| notation::read(topic)).map(|talk| talk.name).collect();
    assert!(names.len() >= 120, "{} conversations", names.len());
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "two conversations have the same name");
}

/// Where conversations are played, with tables of its own.
struct Place {
    name: &'static str,
    mode: Mode,
    database: Database,
    leash: Option<Leash>,
    admin: Session,
    second: Option<Second>,
}

/// What every conversation may use: a table, and a function that speaks.
const FURNITURE: &str = "
    CREATE TABLE t (n int PRIMARY KEY, s text);
    CREATE FUNCTION say(text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN RAISE NOTICE '%', $1; RETURN $1; END $$;
    ALTER TABLE t OWNER TO app;";

/// What makes one conversation's end the next one's beginning.
const TIDY: &str = "DROP SCHEMA IF EXISTS scratch CASCADE; CREATE SCHEMA scratch AUTHORIZATION app; \
                    DELETE FROM t";

impl Place {
    async fn direct() -> Place {
        Place::new("direct", Mode::Session, Server::shared().database().await, None).await
    }

    async fn through(name: &'static str, mode: Mode, size: usize) -> Place {
        let database = Server::shared().database().await;
        // A conversation may end with anything: the log says so, and what it says is tested elsewhere.
        let told = &["client_refused", "leak_detected", "upstream_failed"];
        let setup = Leash::on(&database).mode(mode).set("pool.size", size).expecting(told);
        let leash = setup.start().await;
        let mut place = Place::new(name, mode, database, Some(leash)).await;
        if size == 1 {
            place.second = Some(Second::new(&place.endpoint()).await);
        }
        place
    }

    async fn new(name: &'static str, mode: Mode, database: Database, leash: Option<Leash>) -> Place {
        let admin = database.admin().await;
        admin.batch_execute(FURNITURE).await.unwrap();
        Place { name, mode, database, leash, admin, second: None }
    }

    fn endpoint(&self) -> crate::support::Endpoint {
        self.leash.as_ref().map_or_else(|| self.database.direct(), Leash::endpoint)
    }

    async fn play(&mut self, talk: &Talk) -> Result<Played, String> {
        self.admin.batch_execute(TIDY).await.unwrap();
        let manner = match (&mut self.second, &self.leash) {
            (Some(second), Some(leash)) => Manner::Interleaved(second, leash),
            _ => Manner::Alone,
        };
        let endpoint = self.leash.as_ref().map_or_else(|| self.database.direct(), Leash::endpoint);
        play(talk, &endpoint, manner).await
    }

    async fn close(self) {
        self.admin.close().await;
        if let Some(second) = self.second {
            second.close().await;
        }
        match self.leash {
            Some(leash) => finish(leash, &self.database).await,
            None => self.database.remove().await,
        }
    }
}

async fn compare_all(topic: &str, text: &str) {
    let mut talks = notation::read(text);
    talks.retain(|talk| talk.servers.contains(&Server::major()));
    let (mut direct, session, transaction, shared) = tokio::join!(
        Place::direct(),
        Place::through("session mode", Mode::Session, 4),
        Place::through("transaction mode", Mode::Transaction, 4),
        Place::through("transaction mode, shared", Mode::Transaction, 1),
    );
    let mut places = [session, transaction, shared];
    let mut failures = Vec::new();
    for talk in &talks {
        let expected = match direct.play(talk).await {
            Ok(expected) => expected,
            Err(why) => {
                failures.push(format!("{topic}: {}: direct: {why}", talk.name));
                continue;
            }
        };
        for place in &mut places {
            if place.second.is_some() && talk.alone.is_some() {
                continue;
            }
            let outcome = place.play(talk).await.and_then(|played| difference(talk, &expected, &played));
            let known = talk.differs_in(place.mode);
            match outcome {
                Err(why) if !known => failures.push(format!("{topic}: {}: {}: {why}", talk.name, place.name)),
                Ok(()) if known => {
                    failures.push(format!("{topic}: {}: {}: it no longer differs", talk.name, place.name));
                }
                _ => {}
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} conversations\n{}",
        failures.len(),
        talks.len(),
        failures.join("\n")
    );
    direct.close().await;
    for place in places {
        place.close().await;
    }
}
