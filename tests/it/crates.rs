//! Which crates may know which (ARCHITECTURE.md), as Cargo sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Each crate, and those of ours that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("pgleash-core", &[]),
    ("pgleash-wire", &["pgleash-core"]),
    ("pgleash-clock", &["pgleash-core"]),
    ("pgleash-watchdog", &["pgleash-core", "pgleash-clock"]),
    ("pgleash-telemetry", &["pgleash-core", "pgleash-clock"]),
    ("pgleash-testkit", &["pgleash-clock"]),
    (
        "pgleash-sidecar",
        &["pgleash-core", "pgleash-wire", "pgleash-clock", "pgleash-watchdog", "pgleash-telemetry"],
    ),
    (
        "pgleash-tools",
        &["pgleash-core", "pgleash-clock", "pgleash-telemetry", "pgleash-sidecar", "pgleash-testkit"],
    ),
];

/// What no crate needs that only computes.
const OUTSIDE: &[&str] = &[
    "tokio",
    "mio",
    "hyper",
    "axum",
    "rustls",
    "socket2",
    "rustix",
    "tokio-postgres",
    "pgleash-clock",
    "tracing-subscriber",
];

/// The crates that each crate depends on, in a build that is not a test.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn read() -> Self {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["metadata", "--format-version=1", "--locked", "--offline"]);
        let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let names: BTreeMap<&str, &str> = list(&metadata["packages"])
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let nodes = list(&metadata["resolve"]["nodes"]).map(|node| {
            let needed =
                list(&node["deps"]).filter(|dep| list(&dep["dep_kinds"]).any(|kind| kind["kind"].is_null()));
            let needed = needed.map(|dep| names[text(&dep["pkg"])].to_owned()).collect();
            (names[text(&node["id"])].to_owned(), needed)
        });
        Self(nodes.collect())
    }

    /// All that a crate pulls in.
    fn tree(&self, root: &str) -> BTreeSet<String> {
        let mut tree = BTreeSet::new();
        let mut open = vec![root.to_owned()];
        while let Some(name) = open.pop() {
            for needed in &self.0[&name] {
                if tree.insert(needed.clone()) {
                    open.push(needed.clone());
                }
            }
        }
        tree
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().unwrap().iter()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn arrows_between_crates_point_down() {
    let graph = Graph::read();
    let ours = |name: &&String| name.starts_with("pgleash-");
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    for (name, needed) in graph.0.iter().filter(|(name, _)| ours(name)) {
        assert!(known.contains(name.as_str()), "{name} has no place: name it in tests/it/crates.rs");
        let allowed = ARROWS.iter().find(|(one, _)| one == name).map(|(_, allowed)| *allowed).unwrap();
        let wrong: Vec<_> =
            needed.iter().filter(ours).filter(|one| !allowed.contains(&one.as_str())).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

#[test]
fn what_judges_and_what_reads_frames_has_no_clock_no_io_and_no_async() {
    let graph = Graph::read();
    for name in ["pgleash-core", "pgleash-wire"] {
        let tree = graph.tree(name);
        assert!(tree.len() >= 5, "{name} needs {tree:?}, which cannot be all");
        let wrong: Vec<_> = OUTSIDE.iter().filter(|outside| tree.contains(**outside)).collect();
        assert!(wrong.is_empty(), "{name} pulls in {wrong:?}");
    }
}
