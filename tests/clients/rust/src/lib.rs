//! Where the clients connect: the PG* variables.

use std::fmt::Debug;

/// A URL of the place.
pub fn url(application_name: &str) -> String {
    let get = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (user, host, port, database) = (get("PGUSER"), get("PGHOST"), get("PGPORT"), get("PGDATABASE"));
    format!("postgres://{user}@{host}:{port}/{database}?application_name={application_name}")
}

/// Prints what was got.
pub fn say(what: &str, value: impl Debug) {
    println!("{what}: {value:?}");
}
