//! Why a session keeps its server connection, and what statements may have done to it.

use crate::string_enum;

string_enum! {
    /// Why a session keeps its server connection between transactions.
    Pin {
        /// `pool.mode` is `session`.
        SessionMode => "session_mode",
        /// A protocol-level prepared statement that is too long to be made on another connection.
        PreparedStatement => "prepared_statement",
        /// SQL PREPARE.
        SqlPrepare => "sql_prepare",
        /// LISTEN.
        Listen => "listen",
        /// A temporary table, view, function or sequence.
        TempTable => "temp_table",
        /// DECLARE ... WITH HOLD.
        HoldableCursor => "holdable_cursor",
        /// A session-level advisory lock.
        AdvisoryLock => "advisory_lock",
        /// A parameter was set whose name is not known, or whose value cannot be read back.
        Setting => "setting",
        /// LOAD of a shared library.
        Load => "load",
    }
}

impl Pin {
    /// Whether the client holds the connection for a purpose that being idle is part of: it is shown,
    /// and never a leak for being idle.
    pub const fn is_deliberate(self) -> bool {
        matches!(self, Pin::Listen | Pin::TempTable | Pin::HoldableCursor | Pin::AdvisoryLock)
    }
}

/// A set of pins, and of what else statements do to a session. A pin that comes from a statement's text is a
/// guess: the server is asked before it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pins(u32);

impl Pins {
    /// No pin: a setting that is perhaps undone with the transaction. Until that is over, what a text means is
    /// not known from the session's parameters.
    pub const SETTING_IN_TRANSACTION: Pins = Pins(1 << 31);
    /// No pin: a name that means something else, perhaps only until the transaction is over. Until then it does so to
    /// this client alone.
    pub const NAMES_IN_TRANSACTION: Pins = Pins(1 << 30);
    /// Both.
    pub const IN_TRANSACTION: Pins = Self::SETTING_IN_TRANSACTION.and(Self::NAMES_IN_TRANSACTION);

    /// Parameters change whose names the text has.
    pub const TOUCHES: Pins = Pins(1 << 29);
    /// Any parameter may change that the server lists in `pg_settings`.
    pub const TOUCHES_ALL: Pins = Pins(1 << 28);
    /// A parameter may change that the server does not list, under a name that the text does not have.
    pub const HIDES: Pins = Pins(1 << 27);
    /// A parameter goes back to its default.
    pub const RESETS: Pins = Pins(1 << 26);
    /// `search_path` may change, perhaps only until the transaction is over.
    pub const MOVES_PATH: Pins = Pins(1 << 25);
    /// The generator behind `random()` is seeded.
    pub const SEEDS: Pins = Pins(1 << 24);
    /// The session's own values of sequences are read (`currval`, `lastval`).
    pub const READS_SEQUENCES: Pins = Pins(1 << 23);
    /// Something may end for which the connection is kept.
    pub const ENDS: Pins = Pins(1 << 22);
    /// DISCARD ALL.
    pub const DISCARDS: Pins = Pins(1 << 21);

    /// A parameter goes back to its default until the transaction is over.
    pub const RESETS_LOCALLY: Pins = Pins(1 << 20);

    /// What has to do with parameters.
    pub const PARAMETERS: Pins = Self::TOUCHES.and(Self::TOUCHES_ALL).and(Self::HIDES).and(Self::RESETS);
    /// What the server can be asked about.
    pub const VERIFIABLE: Pins = Self::of(Pin::TempTable)
        .and(Self::of(Pin::AdvisoryLock))
        .and(Self::of(Pin::Listen))
        .and(Self::of(Pin::HoldableCursor))
        .and(Self::of(Pin::SqlPrepare));
    /// What a connection is kept for.
    const REASONS: Pins = Pins((1 << 16) - 1);

    /// This one alone.
    pub const fn of(pin: Pin) -> Self {
        Pins(1 << pin as u32)
    }

    /// What a FunctionCall of the built-in function with this oid leaves behind (`pg_proc.dat`).
    pub const fn of_function(oid: u32) -> Self {
        match oid {
            // set_config
            2078 => Self::TOUCHES_ALL.and(Self::HIDES).and(Pins::SETTING_IN_TRANSACTION),
            // pg_advisory_lock, pg_try_advisory_lock and the shared ones, with one key and with two
            2880..=2883 | 2886..=2889 => Pins::of(Pin::AdvisoryLock),
            // pg_advisory_unlock, the shared ones, and pg_advisory_unlock_all
            2884 | 2885 | 2890 | 2891 | 2892 => Self::ENDS,
            // setseed
            1599 => Self::SEEDS,
            // currval, lastval
            1575 | 2559 => Self::READS_SEQUENCES,
            _ => Pins(0),
        }
    }

    /// This one as well.
    pub const fn add(&mut self, pin: Pin) {
        self.0 |= Self::of(pin).0;
    }

    /// These as well.
    pub const fn and(self, others: Pins) -> Self {
        Pins(self.0 | others.0)
    }

    /// All but these.
    pub const fn without(self, others: Pins) -> Self {
        Pins(self.0 & !others.0)
    }

    /// Those that are in both.
    pub const fn within(self, others: Pins) -> Self {
        Pins(self.0 & others.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any of these is among them.
    pub const fn has(self, others: Pins) -> bool {
        self.0 & others.0 != 0
    }

    /// Reasons to keep a connection alone.
    pub const fn reasons(self) -> Self {
        self.within(Self::REASONS)
    }

    /// The one to be shown: a deliberate one before others.
    pub fn told(self) -> Option<Pin> {
        let mut all = Pin::ALL.iter().copied().filter(|pin| self.has(Pins::of(*pin)));
        let first = all.clone().find(|pin| pin.is_deliberate());
        first.or_else(|| all.next())
    }
}
