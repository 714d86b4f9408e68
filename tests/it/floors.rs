//! A lower floor never imports a higher one, nor a neighbour it must not know (ARCHITECTURE.md).

use std::fs;
use std::path::{Path, PathBuf};

/// Every module and its floor; one that is not listed counts to the module it is in.
const FLOORS: &[(&str, u8)] = &[
    ("event", 0),
    ("fingerprint", 0),
    ("ids", 0),
    ("plain", 0),
    ("policy", 0),
    ("snapshot", 0),
    ("wire::frame", 0),
    ("wire::look", 0),
    ("wire::pin", 0),
    ("wire::reply", 0),
    ("wire::scram", 0),
    ("wire::startup", 0),
    ("wire::tags", 0),
    ("wire::vars", 0),
    ("activity", 1),
    ("forecast", 1),
    ("history", 1),
    ("judge", 1),
    ("ledger", 1),
    ("wire::prepared", 1),
    ("wire::pulse", 1),
    // Only declares its parts.
    ("wire", 1),
    ("clock", 2),
    ("telemetry", 2),
    ("checkout", 3),
    ("conn", 3),
    ("defaults", 3),
    ("dial", 3),
    ("errand", 3),
    ("janitor", 3),
    ("keeper", 3),
    ("opening", 3),
    ("pool", 3),
    ("probe", 3),
    ("queue", 3),
    ("rack", 3),
    ("slots", 3),
    ("survey", 3),
    ("switch", 3),
    ("turn", 3),
    ("valve", 3),
    ("check", 4),
    ("config", 4),
    ("drill", 4),
    ("healthcheck", 4),
    ("notify", 4),
    ("report", 4),
    ("sidecar", 4),
    ("tls", 4),
    ("top", 4),
    ("cli", 5),
    ("lib", 5),
    ("main", 5),
];

#[test]
fn no_floor_imports_a_higher_one() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in sources(&src) {
        let module = module_of(&src, &file);
        let Some(floor) = floor_of(&module) else {
            wrong.push(format!("{module} is on no floor: name it in tests/it/floors.rs"));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        for import in imports(&text, &module) {
            match floor_of(&import) {
                Some(theirs) if theirs <= floor => {}
                Some(theirs) => {
                    wrong.push(format!("{module} (floor {floor}) imports {import} (floor {theirs})"))
                }
                None => wrong.push(format!("{module} imports {import}, which is on no floor")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_lowest_floors_know_no_clock_no_io_no_async_and_no_log() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let foreign = ["tokio", "std::net", "std::fs", "std::thread", "Instant::now", "SystemTime", "println!"];
    let mut wrong = Vec::new();
    for file in sources(&src) {
        let module = module_of(&src, &file);
        if floor_of(&module).is_none_or(|floor| floor > 1) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for line in code_lines(&text) {
            if let Some(word) = foreign.iter().find(|word| line.contains(**word)) {
                wrong.push(format!("{module} uses {word}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_read_in_every_form() {
    let text = "use crate::{event::Event, wire::{frame, startup::Packet}};\nuse crate::ids::Moment;\n\
                // crate::comment::is_ignored\nfn f() { crate::pool::lend(); super::gate::open(); }\n\
                #[cfg(test)]\nmod tests { use crate::sidecar::anything; }\n";
    let found = imports(text, "sidecar::relay");
    assert_eq!(
        found,
        [
            "event::Event",
            "wire::frame",
            "wire::startup::Packet",
            "ids::Moment",
            "pool::lend",
            "sidecar::gate::open"
        ]
    );
}

/// The floor of a module path or of a path to an item in one.
fn floor_of(path: &str) -> Option<u8> {
    let holds =
        |name: &str| path == name || path.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"));
    FLOORS.iter().filter(|(name, _)| holds(name)).max_by_key(|(name, _)| name.len()).map(|(_, floor)| *floor)
}

/// Every path below `crate::` or `super::` that the code of a module names, tests left out.
fn imports(text: &str, module: &str) -> Vec<String> {
    let mut code = code_lines(text).collect::<Vec<_>>().join("\n");
    let parent = module.rsplit_once("::").map_or(String::new(), |(parent, _)| format!("{parent}::"));
    code = code.replace("super::", &format!("crate::{parent}"));
    let mut found = Vec::new();
    for (at, root) in code.match_indices("crate::") {
        if code[..at].ends_with("$") {
            continue;
        }
        expand("", &code[at + root.len()..], &mut found);
    }
    found
}

/// Reads one use tree: `a::{b, c::d}` is `a::b` and `a::c::d`. Returns what follows it.
fn expand<'a>(prefix: &str, tree: &'a str, found: &mut Vec<String>) -> &'a str {
    let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(tree.len());
    let path = format!("{prefix}{}", &tree[..end]);
    let mut rest = &tree[end..];
    if !rest.starts_with('{') {
        found.push(path.trim_end_matches(':').to_owned());
        return rest;
    }
    while !rest.starts_with('}') && !rest.is_empty() {
        rest = expand(&path, rest[1..].trim_start(), found).trim_start();
        rest = rest.find([',', '}', '{']).map_or("", |at| &rest[at..]);
        if rest.starts_with(',') && rest[1..].trim_start().starts_with('}') {
            rest = rest[1..].trim_start();
        }
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

/// The code up to the unit tests, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().map(|line| line.split("//").next().unwrap_or_default())
}

fn module_of(src: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(src).unwrap().with_extension("");
    let path = relative.to_str().unwrap().replace('/', "::");
    path.strip_suffix("::mod").map_or(path.clone(), str::to_owned)
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("tests") {
            continue;
        } else if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
