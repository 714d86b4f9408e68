//! Why a session keeps its server connection. Floor 0.

use crate::event::closed_set;

closed_set! {
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
        /// A temporary table, view or sequence.
        TempTable => "temp_table",
        /// DECLARE ... WITH HOLD.
        HoldableCursor => "holdable_cursor",
        /// A session-level advisory lock.
        AdvisoryLock => "advisory_lock",
        /// SET of a parameter whose value the server does not report, or set_config.
        Setting => "setting",
        /// SET ROLE.
        Role => "role",
        /// SET SESSION AUTHORIZATION.
        SessionAuthorization => "session_authorization",
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

/// A set of pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pins(u16);

impl Pins {
    /// Every pin.
    pub const ALL: Pins = Pins(u16::MAX);

    /// No pin, and always beside [`Pin::Setting`]: a parameter is set of which it is not known which.
    pub const SETTING_UNKNOWN: Pins = Pins(1 << 13);

    /// No pin: a setting that is perhaps undone with the transaction. Until that is over, what a text means is
    /// not known from the session's parameters.
    pub const SETTING_IN_TRANSACTION: Pins = Pins(1 << 15);

    /// No pin: a name that means something else, perhaps only until the transaction is over. Until then it does so to
    /// this client alone.
    pub const NAMES_IN_TRANSACTION: Pins = Pins(1 << 14);

    /// Both.
    pub const IN_TRANSACTION: Pins = Self::SETTING_IN_TRANSACTION.and(Self::NAMES_IN_TRANSACTION);

    /// This one alone.
    pub const fn of(pin: Pin) -> Self {
        Pins(1 << pin as u16)
    }

    /// What a FunctionCall of the built-in function with this oid leaves behind (`pg_proc.dat`).
    pub const fn of_function(oid: u32) -> Self {
        match oid {
            // set_config
            2078 => Pins::of(Pin::Setting).and(Pins::SETTING_UNKNOWN).and(Pins::SETTING_IN_TRANSACTION),
            // pg_advisory_lock, pg_try_advisory_lock and the shared ones, with one key and with two
            2880..=2883 | 2886..=2889 => Pins::of(Pin::AdvisoryLock),
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

    /// The one to be shown: a deliberate one before others.
    pub fn told(self) -> Option<Pin> {
        let mut all = Pin::ALL.iter().copied().filter(|pin| !Pins::of(*pin).within(self).is_empty());
        let first = all.clone().find(|pin| pin.is_deliberate());
        first.or_else(|| all.next())
    }
}
