//! What one client has prepared, wherever it is.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use pgleash_core::Pins;

use crate::parameters;
use crate::parameters::Vars;
use crate::prepared::rewrite;
use crate::prepared::server_cache::Number;
use crate::prepared::statement::{Library, Scope, Shape, Statement};

/// A client's prepared statements by the names it gave them, and its unnamed one.
#[derive(Debug)]
pub struct Names {
    /// Those of the pool's clients.
    library: Arc<Library>,
    /// What is copied for the client alone is told from other copies by this. The server may analyse a copy whenever it
    /// is used, so a copy has its time: as long as the client's settings are the same, a transaction's included.
    era: u64,
    /// The client's parameters, and what they have to do with the meaning of a text.
    settings: (Arc<Vars>, Arc<str>),
    /// How they have a text's letters read.
    reading: Arc<str>,
    /// Whether these alone are what is set on the connection now; and how often something was set that may end with its
    /// transaction.
    standing: (bool, u64),
    named: HashMap<Arc<[u8]>, Held, RandomState>,
    /// Bytes of the statements that can be made anywhere, shared or not.
    kept: usize,
    /// The unnamed statement.
    pub unnamed: Unnamed,
}

/// A statement with a name.
#[derive(Clone, Debug)]
pub enum Held {
    /// It can be made on any connection.
    Anywhere(Arc<Statement>),
    /// It is on the connection that the client has now, which it keeps.
    Here(Number, Pins),
}

/// The unnamed statement, as far as the server has answered. The server has one for each connection, so a
/// client's is made again where another client's may have been since.
#[derive(Debug, Default)]
pub struct Unnamed {
    /// What the client parsed last.
    pub parsed: Parsed,
    /// What Describe told the client of it.
    pub told: Option<Told>,
    /// Whether it is on this connection.
    pub place: NameState,
}

/// What a Parse of the unnamed statement says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The text and the types, as Parse has them behind the name. Empty if there is no statement, or if it
    /// cannot be made elsewhere.
    pub body: Vec<u8>,
    /// What it leaves behind.
    pub pins: Pins,
    /// What it deallocates, by the client's name and by the number in its text.
    pub deallocates: Option<(Arc<[u8]>, Number)>,
}

/// What Describe says of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its parameters' types, as Parse would have them.
    pub types: Box<[u8]>,
    /// Its rows.
    pub shape: Shape,
}

/// Where the client's unnamed statement is, seen from the connection that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameState {
    /// Elsewhere; what is here may be another client's.
    #[default]
    Elsewhere,
    /// Here, if there is one.
    Here,
}

impl Names {
    /// The longest text, with its types, that is kept to be parsed again elsewhere, in bytes.
    pub const LONGEST: usize = 1024 * 1024;
    /// Names beyond this many stay with the connection they were made on.
    const MOST: usize = 10_000;
    /// So do statements beyond this many bytes in all.
    const MOST_BYTES: usize = 16 * 1024 * 1024;

    /// Of one of the clients who share this library.
    pub fn new(library: Arc<Library>) -> Self {
        Self {
            era: library.new_number(),
            library,
            settings: (Arc::default(), Arc::from("")),
            reading: parameters::reading(&Vars::default()).into(),
            standing: (false, 0),
            named: HashMap::default(),
            kept: 0,
            unnamed: Unnamed::default(),
        }
    }

    /// The client gets a connection that others have had since.
    pub fn arrive(&mut self) {
        self.unnamed.place = NameState::Elsewhere;
    }

    /// What is set on the connection now: `vars`, and nothing else if the first of `standing` says so. The second is how
    /// often something was set that may end with its transaction.
    pub fn follow(&mut self, vars: &Arc<Vars>, standing: (bool, u64)) {
        let mut same = self.standing == standing;
        self.standing = standing;
        if !Arc::ptr_eq(&self.settings.0, vars) {
            let meaning = parameters::meaning(vars);
            same &= *meaning == *self.settings.1;
            self.settings = (Arc::clone(vars), meaning.into());
            self.reading = parameters::reading(vars).into();
        }
        if !same {
            self.next_era();
        }
    }

    /// What was copied for the client alone is not used any more; what it was told by.
    pub fn next_era(&mut self) -> u64 {
        std::mem::replace(&mut self.era, self.library.new_number())
    }

    /// The statement to be used for this one of the client's now. What others share is for those who have its
    /// settings and no others: whoever uses it, the server may analyse it anew at that moment, under his.
    pub fn fitting(&self, statement: Arc<Statement>) -> Arc<Statement> {
        match &statement.scope {
            Scope::Settings(settings, since) if !self.standing.0 || *settings != self.settings.1 => {
                let scope = Scope::Client(self.era, *since);
                self.library.shared(Statement { scope, ..(*statement).clone() })
            }
            Scope::Settings(..) | Scope::Client(..) => statement,
        }
    }

    /// What names mean may have changed: statements that are parsed from now on are others.
    pub fn meanings_change(&self) {
        self.library.meanings_change();
    }

    /// Who may use a statement with this text that is parsed now.
    pub fn scope(&self, text: &[u8]) -> Scope {
        if self.standing.0 && !rewrite::tells_the_time(text) {
            Scope::Settings(Arc::clone(&self.settings.1), self.library.generation())
        } else {
            Scope::Client(self.library.new_number(), self.library.generation())
        }
    }

    /// How a text with these letters is read, if there is more than one way.
    pub fn reading(&self, text: &[u8]) -> Option<Arc<str>> {
        let is_clear = text.is_ascii() && memchr::memchr(b'\\', text).is_none();
        (!is_clear).then(|| Arc::clone(&self.reading))
    }

    /// Whether a statement's text would be read now as it was.
    pub fn reads(&self, statement: &Statement) -> bool {
        statement.reading.as_ref().is_none_or(|reading| *reading == self.reading)
    }

    /// What the client calls by this name.
    pub fn get(&self, name: &[u8]) -> Option<(&Arc<[u8]>, &Held)> {
        self.named.get_key_value(key(name))
    }

    /// From now on the client calls this by that name.
    pub fn put(&mut self, name: Arc<[u8]>, held: Held) {
        self.remove(&name);
        self.kept += held.bytes();
        self.named.insert(name, held);
    }

    /// The statement of this name is known now, and can be made anywhere; unless there are too many.
    pub fn learn(&mut self, name: &Arc<[u8]>, mut statement: Statement) -> Option<Arc<Statement>> {
        // It may have been analysed before names changed their meaning, or after.
        if let Scope::Settings(_, since) = statement.scope
            && since != self.library.generation()
        {
            statement.scope = Scope::Client(self.library.new_number(), since);
        }
        if self.named.len() > Self::MOST || self.kept + statement.bytes() > Self::MOST_BYTES {
            return None;
        }
        let held = self.named.get_mut(name)?;
        let statement = self.library.shared(statement);
        *held = Held::Anywhere(Arc::clone(&statement));
        self.kept += held.bytes();
        Some(statement)
    }

    /// The one copy of a statement.
    pub fn shared(&self, statement: Statement) -> Arc<Statement> {
        self.library.shared(statement)
    }

    /// The client has closed this name.
    pub fn remove(&mut self, name: &[u8]) {
        self.kept -= self.named.remove(key(name)).map_or(0, |held| held.bytes());
    }

    /// The client has closed all names.
    pub fn clear(&mut self) {
        self.named.clear();
        self.kept = 0;
    }
}

impl Held {
    fn bytes(&self) -> usize {
        match self {
            Held::Anywhere(statement) => statement.bytes(),
            Held::Here(..) => 0,
        }
    }
}

impl Unnamed {
    /// On this connection there is this one now; the buffer of the one before is given back.
    pub fn replace(&mut self, parsed: Parsed) -> Vec<u8> {
        (self.told, self.place) = (None, NameState::Here);
        std::mem::replace(&mut self.parsed, parsed).body
    }

    /// There is none any more; its buffer is given back.
    pub fn forget(&mut self) -> Vec<u8> {
        self.replace(Parsed::default())
    }
}

/// What the server tells names apart by: their first 63 bytes (`NAMEDATALEN`).
pub(crate) fn key(name: &[u8]) -> &[u8] {
    &name[..name.len().min(63)]
}
