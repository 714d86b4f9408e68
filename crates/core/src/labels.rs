//! The closed sets that facts are told with: each member is a label value.

use crate::string_enum;

string_enum! {
    /// Why a checkout is believed to be leaked (DESIGN section 2).
    Reason {
        /// Given back inside a transaction, or with a reply owed.
        DirtyReturn => "dirty_return",
        /// The server waits in mid-protocol for a client that is silent: a missing Sync, a suspended
        /// portal, an abandoned COPY.
        ProtocolWedge => "protocol_wedge",
        /// The client's socket is gone.
        Orphaned => "orphaned",
        /// Nothing in flight, a transaction open, no byte for longer than the limit.
        IdleInTransaction => "idle_in_transaction",
        /// Nothing in flight, no transaction, but the connection is held and unused.
        IdleSession => "idle_session",
        /// The server connection is older than `max_lifetime` and is still held.
        Overdue => "overdue",
        /// A statement in flight for long. Reported, never reclaimed.
        SlowStatement => "slow_statement",
    }
}

string_enum! {
    /// What became of a suspected leak.
    Resolution {
        /// The holder carried on or gave it back: we were wrong to suspect.
        Returned => "returned",
        /// We took the connection back from a live holder.
        Reclaimed => "reclaimed",
        /// The client disconnected while suspect, and the connection was cleaned or closed.
        Disconnected => "disconnected",
        /// The server connection died under it.
        ServerLost => "server_lost",
    }
}

string_enum! {
    /// How a server connection that did not come home clean was dealt with.
    RecycleAction {
        /// Rolled back if needed, reset, verified quiet, re-issued.
        Reset => "reset",
        /// The running statement was cancelled first.
        Cancel => "cancel",
        /// Closed without trying to reset it.
        Close => "close",
    }
}

string_enum! {
    /// What came of a recycle.
    RecycleOutcome {
        /// The connection is back in the pool.
        Reissued => "reissued",
        /// The connection was closed and its backend is gone.
        Closed => "closed",
        /// The connection was closed, but its backend was still there after the deadline.
        BackendLingers => "backend_lingers",
        /// The connection was closed; whether its backend is gone could not be asked.
        Unverified => "unverified",
    }
}

string_enum! {
    /// Why a server connection was closed.
    CloseReason {
        /// Older than `max_lifetime`.
        MaxLifetime => "max_lifetime",
        /// Unused for `idle_timeout`.
        IdleTimeout => "idle_timeout",
        /// It died or was closed by the server.
        ServerLost => "server_lost",
        /// It could not be reset in time, or was left in mid-protocol.
        Unclean => "unclean",
        /// The pool was made smaller.
        Resized => "resized",
        /// Its server is not the one that is asked for any more: `upstream.url` was changed, or the server
        /// does not fit `target_session_attrs` any more.
        Replaced => "replaced",
        /// pgleash is paused.
        Paused => "paused",
        /// pgleash is stopping.
        Shutdown => "shutdown",
    }
}

string_enum! {
    /// Why a verdict was not carried out.
    Suppression {
        /// `leaks.action` is `observe`.
        Observe => "observe",
        /// The budget for this window is spent.
        Budget => "budget",
        /// The holder moved between the decision and the act.
        Moved => "moved",
        /// pgleash is draining.
        Draining => "draining",
        /// The server did not confirm that it waits for the client.
        Unconfirmed => "unconfirmed",
    }
}

string_enum! {
    /// What a statement in flight waits for, as the server says.
    Wait {
        /// Nothing: it runs.
        Running => "running",
        /// A lock that another has.
        Lock => "lock",
        /// Reading or writing files.
        Io => "io",
        /// Its client: it has rows that nobody reads, or wants data that nobody sends.
        Client => "client",
        /// Anything else that the server knows a name for.
        Other => "other",
    }
}

string_enum! {
    /// What showed that a limit was too narrow.
    Widening {
        /// A suspect came home.
        Returned => "returned",
        /// The holder came back after its connection was taken.
        Regretted => "regretted",
    }
}

string_enum! {
    /// Why a client was turned away or cut off.
    Refusal {
        /// A malformed first packet or frame.
        Protocol => "protocol",
        /// `pool.max_clients` reached.
        TooManyClients => "too_many_clients",
        /// The first packet did not arrive in time.
        LoginTimeout => "login_timeout",
        /// A wrong password, or a user who is not known.
        Password => "password",
        /// The TLS handshake failed, or a client came without TLS that may not.
        Tls => "tls",
        /// The upstream server refused the login.
        Login => "login",
        /// A feature that pgleash does not carry.
        Unsupported => "unsupported",
        /// The upstream server could not be reached.
        Upstream => "upstream",
        /// pgleash is draining.
        Draining => "draining",
    }
}

string_enum! {
    /// A file that is read again when it changes.
    Credential {
        /// `tls.cert`, `tls.key` and `tls.client_ca`.
        Certificate => "certificate",
        /// `auth.users`.
        Users => "users",
    }
}

string_enum! {
    /// Whom notifications go to.
    Channel {
        /// CloudEvents over HTTP, signed.
        Webhook => "webhook",
        /// An incoming webhook of Slack, or of what speaks the same.
        Slack => "slack",
        /// PagerDuty's Events API v2.
        PagerDuty => "pagerduty",
        /// Grafana's annotations.
        Grafana => "grafana",
    }
}

string_enum! {
    /// What became of a notification.
    Delivery {
        /// The receiver has it.
        Sent => "sent",
        /// The receiver will not take it.
        Refused => "refused",
        /// It was given up: there was no room for it, or it could not be sent for too long.
        Dropped => "dropped",
    }
}
