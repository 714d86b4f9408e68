//! Names for things: moments, checkouts, server connections, client sessions, pools, holders.
//!
//! No clock here: a [`Moment`] is a value that somebody else read.

use std::fmt;
use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// A point on the process's monotonic clock, in nanoseconds since the process started.
///
/// Only `clock::now` makes real ones; tests make their own with [`Moment::from_secs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The moment the process started.
    pub const START: Moment = Moment(0);

    /// A moment `nanos` nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// A moment `secs` seconds after the start.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000_000_000)
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this moment is; zero if it is not after it.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment that was so long before this one; the start, if there was none.
    pub fn back(self, by: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, by: Duration) -> Moment {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(nanos))
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// One lending of a server connection. Never reused within a process.
    CheckoutId(u64)
}
number! {
    /// One server connection. Never reused within a process.
    ConnId(u64)
}
number! {
    /// One client session. It is also the process id that the client is told in BackendKeyData,
    /// so that an application can tell which of its connections an event speaks of.
    SessionId(u32)
}

/// A pool is one (database, user) pair on the upstream server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    /// Database name.
    pub database: Arc<str>,
    /// Role name.
    pub user: Arc<str>,
}

impl PoolKey {
    /// The pool of `user` on `database`.
    pub fn new(database: &str, user: &str) -> Self {
        Self { database: database.into(), user: user.into() }
    }
}

impl fmt::Display for PoolKey {
    /// The value of the `pool` label: `user@database`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.database)
    }
}

impl Serialize for PoolKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Who has a server connection checked out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Holder {
    /// The client session; also the process id the client was given.
    pub session: SessionId,
    /// `application_name` as the client set it at startup; empty if it did not.
    pub app: String,
    /// Role name.
    pub user: String,
    /// Database name.
    pub database: String,
    /// The client's address: `ip:port`, or `unix`.
    pub client: String,
}
