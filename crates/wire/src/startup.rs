//! The first packets a client sends, before there are frames with tags.
//!
//! PostgreSQL documentation, "Message Flow / Start-up", "SSL Session Encryption", "Canceling
//! Requests in Progress", "Message Formats / StartupMessage".

use std::collections::BTreeMap;
use std::fmt;

/// The newest minor version of protocol 3 that we speak.
pub const NEWEST_MINOR: u16 = 2;

/// The minor version since which BackendKeyData has a key of up to 256 bytes.
pub const LONG_KEYS_SINCE: u16 = 2;

/// The longest first packet that is read, as in Postgres (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_FIRST_PACKET: usize = 10_000;

/// The parameter that a client gives its name in.
pub const APPLICATION_NAME: &str = "application_name";

/// The code of an SSLRequest.
pub const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// The code of a CancelRequest.
pub const CANCEL_REQUEST: u32 = 80_877_102;

/// A first packet.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// May we speak TLS?
    Ssl,
    /// May we speak GSSAPI?
    Gss,
    /// Cancel what this session runs.
    Cancel {
        /// As told in BackendKeyData.
        pid: u32,
        /// As told in BackendKeyData; 4 bytes before protocol 3.2.
        secret: Vec<u8>,
    },
    /// Let me in.
    Startup(Startup),
}

/// What a client asks for at start-up.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Startup {
    /// Minor version of protocol 3 that the client asked for.
    pub minor: u16,
    /// Role name.
    pub user: String,
    /// Database name; the role's name if the client gave none.
    pub database: String,
    /// Run-time parameters to set, those in `options` included. Names in lower case.
    pub settings: BTreeMap<String, String>,
    /// The `application_name` as it came, if it is not UTF-8; `settings` has what it is until the server is known.
    foreign_name: Option<Vec<u8>>,
    /// Protocol options (`_pq_.…`) that we do not know.
    pub unknown_options: Vec<String>,
}

impl Startup {
    /// The minor version that is spoken with this client.
    pub fn spoken_minor(&self) -> u16 {
        self.minor.min(NEWEST_MINOR)
    }

    /// Spells an `application_name` that is not UTF-8 as a server does whose `server_version` this is: since
    /// PostgreSQL 16 it escapes the bytes that are not printable ASCII, before it loses them (`pg_clean_ascii`).
    pub fn spell_name(&mut self, server_version: &str) {
        let digits = server_version.find(|c: char| !c.is_ascii_digit()).unwrap_or(server_version.len());
        let escapes = server_version[..digits].parse().is_ok_and(|major: u32| major >= 16);
        if let Some(name) = self.foreign_name.take().filter(|_| escapes) {
            let name = name.iter().map(|byte| match byte {
                b' '..=b'~' => char::from(*byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            });
            self.settings.insert(APPLICATION_NAME.to_owned(), name.collect());
        }
    }

    /// Whether the client has to be told with NegotiateProtocolVersion that it does not get all it asked for.
    pub fn needs_negotiation(&self) -> bool {
        self.minor > NEWEST_MINOR || !self.unknown_options.is_empty()
    }
}

/// A first packet that cannot be. Never holds what the client sent but for names and numbers.
#[derive(Debug, PartialEq, Eq)]
pub enum StartupError {
    /// The length field is below 8 or above [`MAX_FIRST_PACKET`].
    Length(u32),
    /// A protocol that is not version 3.
    Version(u16, u16),
    /// The packet does not hold what its kind must.
    Malformed(&'static str),
    /// Nobody wants to be let in.
    NoUser,
    /// Something that pgleash does not carry.
    Unsupported(&'static str),
}

impl fmt::Display for StartupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartupError::Length(length) => {
                write!(f, "invalid length of startup packet: {length}, expected 8 to {MAX_FIRST_PACKET}")
            }
            StartupError::Version(major, minor) => {
                write!(
                    f,
                    "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}"
                )
            }
            StartupError::Malformed(what) => write!(f, "invalid startup packet: {what}"),
            StartupError::NoUser => f.write_str("no user name specified in startup packet"),
            StartupError::Unsupported(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for StartupError {}

/// Checks the length field of a first packet and says how many bytes follow it.
///
/// # Errors
/// [`StartupError::Length`].
pub fn body_length(length: [u8; 4]) -> Result<usize, StartupError> {
    let length = u32::from_be_bytes(length);
    match length as usize {
        total @ 8..=MAX_FIRST_PACKET => Ok(total - 4),
        _ => Err(StartupError::Length(length)),
    }
}

/// Reads a first packet from its body, that is, what follows the length field.
///
/// # Errors
/// A packet that Postgres would refuse too, or that asks for what pgleash does not carry.
pub fn parse(body: &[u8]) -> Result<FirstPacket, StartupError> {
    let (code, rest) = body.split_first_chunk::<4>().ok_or(StartupError::Malformed("no protocol version"))?;
    match u32::from_be_bytes(*code) {
        SSL_REQUEST => Ok(FirstPacket::Ssl),
        GSS_REQUEST => Ok(FirstPacket::Gss),
        CANCEL_REQUEST => match rest.split_first_chunk::<4>() {
            Some((pid, secret)) if (4..=256).contains(&secret.len()) => {
                Ok(FirstPacket::Cancel { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() })
            }
            _ => Err(StartupError::Malformed("a cancel request without process id and key")),
        },
        version if version >> 16 == 3 => startup((version & 0xffff) as u16, rest).map(FirstPacket::Startup),
        version => Err(StartupError::Version((version >> 16) as u16, (version & 0xffff) as u16)),
    }
}

fn startup(minor: u16, mut rest: &[u8]) -> Result<Startup, StartupError> {
    let mut startup = Startup { minor, ..Startup::default() };
    let mut command_line = "";
    loop {
        let name = utf8(cstr(&mut rest)?)?;
        if name.is_empty() {
            break;
        }
        let value = cstr(&mut rest)?;
        // In whatever encoding the client's name is, the server makes ASCII of it.
        if name.eq_ignore_ascii_case(APPLICATION_NAME) {
            let is_foreign = std::str::from_utf8(value).is_err();
            startup.foreign_name = is_foreign.then(|| value.to_owned());
            if is_foreign {
                startup.settings.insert(APPLICATION_NAME.to_owned(), ascii(value));
                continue;
            }
        }
        let value = utf8(value)?;
        match name.to_ascii_lowercase().as_str() {
            "user" => value.clone_into(&mut startup.user),
            "database" => value.clone_into(&mut startup.database),
            "options" => command_line = value,
            "replication" if is_off(value) => {}
            "replication" => {
                return Err(StartupError::Unsupported(
                    "replication connections are not carried by pgleash: connect to the server directly",
                ));
            }
            option if option.starts_with("_pq_.") => startup.unknown_options.push(name.to_owned()),
            setting => drop(startup.settings.insert(setting.to_owned(), value.to_owned())),
        }
    }
    // What has a parameter of its own counts more, wherever it stands.
    for (name, value) in options(command_line)? {
        startup.settings.entry(name).or_insert(value);
    }
    if !rest.is_empty() {
        return Err(StartupError::Malformed("bytes after the terminator"));
    }
    if startup.user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if startup.database.is_empty() {
        startup.database.clone_from(&startup.user);
    }
    Ok(startup)
}

fn is_off(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "off" | "false" | "no" | "f" | "n")
}

fn cstr<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], StartupError> {
    let end = rest
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(StartupError::Malformed("a parameter without terminator"))?;
    let text = &rest[..end];
    *rest = &rest[end + 1..];
    Ok(text)
}

fn utf8(text: &[u8]) -> Result<&str, StartupError> {
    std::str::from_utf8(text).map_err(|_| StartupError::Malformed("a parameter that is not UTF-8"))
}

fn ascii(text: &[u8]) -> String {
    text.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' }).collect()
}

/// Reads `-c name=value` and `--name=value`, with backslash escaping white space, as the server
/// reads `options` ("libpq Connection Parameters / options").
fn options(text: &str) -> Result<BTreeMap<String, String>, StartupError> {
    let mut settings = BTreeMap::new();
    let mut words = split_words(text).into_iter();
    while let Some(word) = words.next() {
        let setting = if let Some(long) = word.strip_prefix("--") {
            long.to_owned()
        } else if word == "-c" {
            words.next().ok_or(StartupError::Malformed("options: -c without a setting"))?
        } else if let Some(short) = word.strip_prefix("-c") {
            short.to_owned()
        } else {
            return Err(StartupError::Unsupported(
                "options other than -c name=value and --name=value are not carried by pgleash",
            ));
        };
        let (name, value) =
            setting.split_once('=').ok_or(StartupError::Malformed("options: a setting without ="))?;
        settings.insert(name.replace('-', "_").to_ascii_lowercase(), value.to_owned());
    }
    Ok(settings)
}

fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        [&code.to_be_bytes()[..], rest].concat()
    }

    #[test]
    fn a_startup_tells_who_where_and_with_which_settings() {
        let body = packet(
            0x0003_0002,
            b"user\0app\0application_name\0payments@3\0_pq_.x\x001\0options\0-c search_path=a\\ b --work-mem=1MB\0\0",
        );
        let Ok(FirstPacket::Startup(startup)) = parse(&body) else { panic!() };
        assert_eq!((startup.minor, startup.user.as_str(), startup.database.as_str()), (2, "app", "app"));
        assert_eq!(startup.unknown_options, ["_pq_.x"]);
        let settings: Vec<_> = startup.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            settings,
            [("application_name", "payments@3"), ("search_path", "a b"), ("work_mem", "1MB")]
        );
    }

    #[test]
    fn an_application_may_be_named_in_any_encoding() {
        let latin = packet(0x0003_0000, b"user\0app\0application_name\0caf\xe9\0\0");
        let spelled = |server_version: &str| {
            let Ok(FirstPacket::Startup(mut startup)) = parse(&latin) else { panic!() };
            startup.spell_name(server_version);
            startup.settings["application_name"].clone()
        };
        assert_eq!(["15.14 (Debian)", "9.6.24", ""].map(spelled), ["caf?"; 3]);
        assert_eq!(["16.10", "18beta1", "18"].map(spelled), ["caf\\xe9"; 3]);
        let user = packet(0x0003_0000, b"user\0caf\xe9\0\0");
        assert_eq!(parse(&user), Err(StartupError::Malformed("a parameter that is not UTF-8")));
    }

    #[test]
    fn versions_are_negotiated_down_and_never_up() {
        let told = |minor, options: &[&str]| {
            let unknown_options = options.iter().map(|option| (*option).to_owned()).collect();
            let startup = Startup { minor, unknown_options, ..Startup::default() };
            (startup.spoken_minor(), startup.needs_negotiation())
        };
        assert_eq!([0, 1, 2].map(|minor| told(minor, &[])), [(0, false), (1, false), (2, false)]);
        assert_eq!([3, 9999].map(|minor| told(minor, &[])), [(2, true), (2, true)]);
        assert_eq!(told(0, &["_pq_.x"]), (0, true));
    }

    #[test]
    fn garbage_is_named() {
        assert_eq!(body_length([0, 0, 0, 4]), Err(StartupError::Length(4)));
        assert_eq!(body_length(*b"GET "), Err(StartupError::Length(0x4745_5420)));
        assert_eq!(parse(&packet(0x0002_0000, b"")), Err(StartupError::Version(2, 0)));
        assert_eq!(
            parse(&packet(0x0003_0000, b"user\0app")),
            Err(StartupError::Malformed("a parameter without terminator"))
        );
        assert_eq!(parse(&packet(0x0003_0000, b"database\0app\0\0")), Err(StartupError::NoUser));
        assert_eq!(
            parse(&packet(0x0003_0000, b"user\0app\0\0xx")),
            Err(StartupError::Malformed("bytes after the terminator"))
        );
        assert!(matches!(
            parse(&packet(0x0003_0000, b"user\0app\0replication\0database\0\0")),
            Err(StartupError::Unsupported(_))
        ));
    }
}
