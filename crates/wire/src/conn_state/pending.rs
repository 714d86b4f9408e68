//! What one server connection owes, and what runs there.

/// A ReadyForQuery that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// For a Query or a FunctionCall, once these many extended-protocol messages before it have been
    /// answered that no Sync ends. If one of them fails, the server skips the query as well.
    Query { before: u32, command: u64 },
    /// For a Sync, behind this command.
    Sync { command: u64, ends: Batch },
    /// For nothing: the client ended COPY data, so many times, before it heard that a COPY of this command
    /// has begun. If it does, the Syncs behind this count.
    CopyEnd { command: u64, times: u32 },
}

/// What a Sync ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    Empty,
    OfMessages,
}

impl Owed {
    pub(crate) const fn command(self) -> u64 {
        match self {
            Owed::Query { command, .. } | Owed::Sync { command, .. } | Owed::CopyEnd { command, .. } => {
                command
            }
        }
    }

    pub(crate) const fn is_owed(self) -> bool {
        !matches!(self, Owed::CopyEnd { .. })
    }
}

/// A COPY from the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Copy {
    #[default]
    No,
    /// The server takes its data.
    Taking,
    /// The client has ended them, and has not heard what became of them.
    Ended,
}

/// What began a COPY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Copier {
    /// Its error ends with a ReadyForQuery.
    #[default]
    Query,
    /// After its error the server skips to the next Sync.
    Execute,
}

/// Whether half a message is on its way to the server; COPY data do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Half {
    #[default]
    No,
    Sent,
}

/// What the server has said last, but for what it says unasked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Last {
    #[default]
    Ready,
    Reply,
}
