//! `target_session_attrs`: which host will do.

use tokio_postgres::{Client, SimpleQueryMessage};

/// libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionAttrs {
    /// Any host.
    #[default]
    Any,
    /// One on which a transaction may write unless it says otherwise.
    ReadWrite,
    /// One on which it may not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// A standby if there is one, else any.
    PreferStandby,
}

impl SessionAttrs {
    /// Every value, as it is written in a URL.
    pub const ALL: [(&'static str, SessionAttrs); 6] = [
        ("any", SessionAttrs::Any),
        ("read-write", SessionAttrs::ReadWrite),
        ("read-only", SessionAttrs::ReadOnly),
        ("primary", SessionAttrs::Primary),
        ("standby", SessionAttrs::Standby),
        ("prefer-standby", SessionAttrs::PreferStandby),
    ];

    /// What is asked of the hosts, one round after the other.
    pub(crate) fn passes(self) -> &'static [SessionAttrs] {
        match self {
            SessionAttrs::Any => &[SessionAttrs::Any],
            SessionAttrs::ReadWrite => &[SessionAttrs::ReadWrite],
            SessionAttrs::ReadOnly => &[SessionAttrs::ReadOnly],
            SessionAttrs::Primary => &[SessionAttrs::Primary],
            SessionAttrs::Standby => &[SessionAttrs::Standby],
            SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
        }
    }

    /// Whether a connection that was chosen by this may have to be given up later, when its server has
    /// changed its role.
    pub fn may_change(self) -> bool {
        !matches!(self, SessionAttrs::Any | SessionAttrs::PreferStandby)
    }

    /// Whether the server of this connection will do. Asks it, unless any will.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn fits(self, client: &Client) -> Result<bool, tokio_postgres::Error> {
        let (question, wanted) = match self {
            SessionAttrs::Any | SessionAttrs::PreferStandby => return Ok(true),
            SessionAttrs::ReadWrite => ("SHOW transaction_read_only", "off"),
            SessionAttrs::ReadOnly => ("SHOW transaction_read_only", "on"),
            SessionAttrs::Primary => ("SELECT pg_catalog.pg_is_in_recovery()", "f"),
            SessionAttrs::Standby => ("SELECT pg_catalog.pg_is_in_recovery()", "t"),
        };
        let answer = client.simple_query(question).await?;
        Ok(answer
            .iter()
            .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some(wanted))))
    }
}
