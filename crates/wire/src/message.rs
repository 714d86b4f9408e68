//! The few messages that pgleash itself says to a client, and one to the server.

use pgleash_core::string_enum;

string_enum! {
    /// The SQLSTATEs pgleash speaks with (PostgreSQL documentation, "PostgreSQL Error Codes").
    SqlState {
        /// Taken back while idle in a transaction.
        IdleInTransactionTimeout => "25P03",
        /// Taken back while idle outside a transaction.
        IdleSessionTimeout => "57P05",
        /// No server connection in time, or too many clients.
        TooManyConnections => "53300",
        /// The sidecar is draining.
        AdminShutdown => "57P01",
        /// The upstream server is unreachable or was lost.
        ConnectionFailure => "08006",
        /// Paused for too long.
        CannotConnectNow => "57P03",
        /// A malformed packet or frame.
        ProtocolViolation => "08P01",
        /// A login without a user, or unencrypted where that may not be.
        InvalidAuthorization => "28000",
        /// The server wants a password that pgleash does not have.
        InvalidPassword => "28P01",
        /// The role may not connect to the database.
        InsufficientPrivilege => "42501",
        /// The client has asked for its statement to be cancelled.
        QueryCanceled => "57014",
        /// Something that is not carried.
        FeatureNotSupported => "0A000",
    }
}

/// A FATAL ErrorResponse; the connection ends after it.
pub fn fatal(state: SqlState, message: &str, hint: Option<&str>) -> Vec<u8> {
    error_fields("FATAL", state.as_str(), message, None, hint)
}

/// An ErrorResponse after which the session goes on.
pub fn error(state: SqlState, message: &str) -> Vec<u8> {
    error_fields("ERROR", state.as_str(), message, None, None)
}

/// A FATAL ErrorResponse that passes on what the server said.
pub fn fatal_from_server(sqlstate: &str, message: &str, detail: Option<&str>, hint: Option<&str>) -> Vec<u8> {
    error_fields("FATAL", sqlstate, message, detail, hint)
}

fn error_fields(
    severity: &str,
    state: &str,
    message: &str,
    detail: Option<&str>,
    hint: Option<&str>,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + message.len());
    let fields = [
        (b'S', Some(severity)),
        (b'V', Some(severity)),
        (b'C', Some(state)),
        (b'M', Some(message)),
        (b'D', detail),
        (b'H', hint),
    ];
    for (code, text) in fields {
        if let Some(text) = text {
            body.push(code);
            cstr(&mut body, text);
        }
    }
    body.push(0);
    framed(b'E', &body)
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    out.extend(framed(b'R', &0_u32.to_be_bytes()));
}

/// AuthenticationSASL: the mechanisms to choose from.
pub fn authentication_sasl(mechanisms: &[&str]) -> Vec<u8> {
    let mut body = 10_u32.to_be_bytes().to_vec();
    for mechanism in mechanisms {
        cstr(&mut body, mechanism);
    }
    body.push(0);
    framed(b'R', &body)
}

/// AuthenticationSASLContinue.
pub fn authentication_sasl_continue(message: &str) -> Vec<u8> {
    framed(b'R', &[&11_u32.to_be_bytes(), message.as_bytes()].concat())
}

/// AuthenticationSASLFinal.
pub fn authentication_sasl_final(message: &str) -> Vec<u8> {
    framed(b'R', &[&12_u32.to_be_bytes(), message.as_bytes()].concat())
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    let mut body = Vec::with_capacity(name.len() + value.len() + 2);
    cstr(&mut body, name);
    cstr(&mut body, value);
    out.extend(framed(b'S', &body));
}

/// BackendKeyData. The key has 4 bytes before protocol 3.2, and up to 256 since.
pub fn backend_key_data(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    out.extend(framed(b'K', &[&pid.to_be_bytes(), key].concat()));
}

/// ReadyForQuery outside a transaction.
pub fn ready_for_query(out: &mut Vec<u8>) {
    out.extend(framed(b'Z', b"I"));
}

/// CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    out.extend(framed(b'3', &[]));
}

/// A question to the server, harmless in any state: so many Closes of a portal that is not there, which is no
/// error, and a Sync.
pub fn whose_turn(closes: u32) -> Vec<u8> {
    let close = framed(b'C', b"Ppgleash: whose turn is it?\0");
    let mut out = close.repeat(closes as usize);
    out.extend(framed(b'S', &[]));
    out
}

/// NegotiateProtocolVersion: this minor version of protocol 3 is spoken, and these options we do not know.
/// The version is sent whole, as Postgres does.
pub fn negotiate_protocol_version(out: &mut Vec<u8>, minor: u16, unknown_options: &[String]) {
    let mut body = (3 << 16 | u32::from(minor)).to_be_bytes().to_vec();
    body.extend((unknown_options.len() as u32).to_be_bytes());
    for option in unknown_options {
        cstr(&mut body, option);
    }
    out.extend(framed(b'v', &body));
}

/// Text up to a NUL, which no text of ours or the server's should hold.
fn cstr(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().take_while(|byte| *byte != 0));
    out.push(0);
}

/// A frame of the server's, as it came.
pub fn passed_on(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.extend(framed(tag, body));
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 5);
    out.push(tag);
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

/// Name and value of a whole ParameterStatus body.
pub fn read_parameter_status(body: &[u8]) -> Option<(&str, &str)> {
    let mut parts = body.split(|byte| *byte == 0);
    Some((std::str::from_utf8(parts.next()?).ok()?, std::str::from_utf8(parts.next()?).ok()?))
}
