//! What a prepared statement is, whoever calls it what.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pgleash_core::Pins;

/// A prepared statement, told from others by its content: the text, the parameters' types as the server
/// resolved them, the rows that it gives, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Statement {
    /// Whose it is.
    pub scope: Scope,
    /// The text, with its NUL.
    pub text: Box<[u8]>,
    /// How its letters were read, if there is more than one way.
    pub reading: Option<Arc<str>>,
    /// Parameter types as Parse has them: their number, then their oids.
    pub types: Box<[u8]>,
    /// What Describe says of its rows.
    pub shape: Shape,
    /// What it leaves behind on the connection that runs it.
    pub pins: Pins,
}

/// Who may use a statement that one client has prepared. The server reads a text by the settings of the
/// moment (its literals by TimeZone and DateStyle, for one), so the same text is not the same statement for
/// a client with others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Clients of the pool with these settings, who have parsed it since names have changed their meaning for the
    /// so many-th time.
    Settings(Arc<str>, u64),
    /// One client alone, by a number that stands for one Parse of its, or for what was copied for it while it had the
    /// same settings; since then likewise.
    Client(u64, u64),
}

impl Statement {
    /// Bytes that are kept for it.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.types.len() + self.shape.0.len()
    }
}

/// The row type of a statement, as far as the server compares it when it makes a plan anew: names,
/// types and type modifiers of the columns, but not the tables they come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape(Box<[u8]>);

impl Shape {
    /// From the body of a RowDescription (`T`) or a NoData (`n`). What cannot be read is kept as it is.
    pub fn of(tag: u8, body: &[u8]) -> Self {
        let columns = if tag == b'T' { columns(body) } else { Some(Vec::new()) };
        let mut shape = vec![tag];
        shape.extend(columns.unwrap_or_else(|| body.to_vec()));
        Shape(shape.into())
    }
}

/// Name, type oid and type modifier of each column ("Message Formats", RowDescription).
fn columns(body: &[u8]) -> Option<Vec<u8>> {
    let mut kept = Vec::with_capacity(body.len());
    let mut rest = body.get(2..)?;
    while !rest.is_empty() {
        let name = memchr::memchr(0, rest)?;
        let fields = rest.get(name + 1..name + 19)?;
        kept.extend_from_slice(&rest[..=name]);
        kept.extend_from_slice(&fields[6..10]);
        kept.extend_from_slice(&fields[12..16]);
        rest = &rest[name + 19..];
    }
    Some(kept)
}

/// One copy of each statement of a pool's clients, however many names and connections have it.
///
/// It keeps none alive: a statement goes when the last name and the last connection that have it do.
#[derive(Debug, Default)]
pub struct Library {
    known: Mutex<Known>,
    numbers: AtomicU64,
    /// How often names have changed their meaning, to all pools of the database.
    generation: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Known {
    statements: HashMap<u64, Weak<Statement>>,
    /// At this many entries those of statements that have gone are dropped.
    sweep_at: usize,
}

impl Library {
    const SWEEP_FROM: usize = 256;

    /// Another one for the same database: what changes there changes for both.
    pub fn beside(&self) -> Self {
        Self { generation: Arc::clone(&self.generation), ..Self::default() }
    }

    /// A number that was never given before.
    pub fn new_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// How often names have changed their meaning.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Names may mean something else from now on.
    pub fn meanings_change(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// The one copy of this statement.
    pub fn shared(&self, statement: Statement) -> Arc<Statement> {
        let mut hasher = DefaultHasher::new();
        statement.hash(&mut hasher);
        let key = hasher.finish();
        let mut known = self.known.lock();
        if let Some(known) = known.statements.get(&key).and_then(Weak::upgrade) {
            // Of two with the same hash the second is not shared, which does no harm.
            return if *known == statement { known } else { Arc::new(statement) };
        }
        if known.statements.len() >= known.sweep_at {
            known.statements.retain(|_, known| known.strong_count() > 0);
            known.sweep_at = (2 * known.statements.len()).max(Self::SWEEP_FROM);
        }
        let shared = Arc::new(statement);
        known.statements.insert(key, Arc::downgrade(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(text: &str) -> Statement {
        Statement {
            scope: Scope::Client(1, 0),
            text: text.as_bytes().into(),
            reading: None,
            types: [0, 0].into(),
            shape: Shape::of(b'n', b""),
            pins: Pins::default(),
        }
    }

    #[test]
    fn the_same_statement_is_kept_once_and_goes_with_its_last_user() {
        let library = Library::default();
        let one = library.shared(statement("select 1\0"));
        assert!(Arc::ptr_eq(&one, &library.shared(statement("select 1\0"))));
        assert!(!Arc::ptr_eq(&one, &library.shared(statement("select 2\0"))));
        for n in 0..10 * Library::SWEEP_FROM {
            library.shared(statement(&n.to_string()));
        }
        let known = library.known.lock();
        assert!(known.statements.len() <= Library::SWEEP_FROM, "{}", known.statements.len());
        assert!(known.statements.values().any(|known| known.ptr_eq(&Arc::downgrade(&one))));
    }

    #[test]
    fn a_shape_is_names_and_types_and_not_the_table() {
        let row = |name: &str, table: u32, oid: u32, modifier: i32| {
            let mut body = vec![0, 1];
            body.extend(name.as_bytes());
            body.push(0);
            body.extend(table.to_be_bytes());
            body.extend([0, 1]);
            body.extend(oid.to_be_bytes());
            body.extend([0, 4]);
            body.extend(modifier.to_be_bytes());
            body.extend([0, 0]);
            Shape::of(b'T', &body)
        };
        assert_eq!(row("a", 1, 23, -1), row("a", 2, 23, -1));
        assert_ne!(row("a", 1, 23, -1), row("b", 1, 23, -1));
        assert_ne!(row("a", 1, 23, -1), row("a", 1, 25, -1));
        assert_ne!(row("a", 1, 1043, 14), row("a", 1, 1043, 24));
        assert_ne!(Shape::of(b'n', b""), Shape::of(b'T', &[0, 0]));
    }
}
