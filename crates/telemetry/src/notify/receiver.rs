//! Where notifications go, as the configuration names it.

use std::{fmt, fs};

use percent_encoding::percent_decode_str;
use pgleash_core::{Channel, InvalidValue};
use url::Url;

/// One receiver of notifications. Its secrets are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Receiver {
    /// What it speaks.
    pub channel: Channel,
    /// Where requests go, without user and password. The path of a Slack URL is a secret all the same.
    pub url: Url,
    /// The key of the signature, the routing key or the token; empty for Slack.
    pub secret: String,
}

impl Receiver {
    /// More than any URL or key.
    const LONGEST: usize = 4096;
    const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

    /// Reads what a key of the configuration says: the value itself, or `file:` and the path of a file that holds it.
    ///
    /// # Errors
    /// What is wrong with it; nothing of the value is said.
    pub fn parse(channel: Channel, text: &str) -> Result<Self, InvalidValue> {
        let text = match text.strip_prefix("file:") {
            Some(path) => fs::read_to_string(path).map_err(|error| {
                InvalidValue::new(
                    format!("names a file that cannot be read: {error}"),
                    "name one that may be read",
                )
            })?,
            None => text.to_owned(),
        };
        let text = text.trim();
        if text.len() > Self::LONGEST {
            return Err(InvalidValue::new(
                "is longer than 4096 characters",
                "see that it is the right value",
            ));
        }
        if channel == Channel::PagerDuty && !text.contains("://") {
            let url = Url::parse(Self::PAGERDUTY).expect("a constant");
            return Self { channel, url, secret: text.to_owned() }.checked();
        }
        let mut url = Url::parse(text).map_err(|error| {
            InvalidValue::new(format!("is not a URL: {error}"), "write it as https://host/path")
        })?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(InvalidValue::new(
                "is not an http or https URL with a host",
                "write it as https://host/path",
            ));
        }
        let secret = match (url.password(), url.username()) {
            (Some(password), _) => password,
            (None, user) => user,
        };
        let secret = percent_decode_str(secret).decode_utf8_lossy().into_owned();
        // Neither can fail: the URL has a host.
        let _ = url.set_password(None);
        let _ = url.set_username("");
        url.set_fragment(None);
        Self { channel, url: Self::endpoint(channel, url), secret }.checked()
    }

    /// Where requests go below the address that people know.
    fn endpoint(channel: Channel, mut url: Url) -> Url {
        let below = match channel {
            Channel::PagerDuty if url.path() == "/" => "/v2/enqueue".to_owned(),
            Channel::Grafana => format!("{}/api/annotations", url.path().trim_end_matches('/')),
            Channel::Webhook | Channel::Slack | Channel::PagerDuty => return url,
        };
        url.set_path(&below);
        url
    }

    fn checked(self) -> Result<Self, InvalidValue> {
        let fits_a_header = self.secret.bytes().all(|byte| byte.is_ascii_graphic());
        match self.channel {
            Channel::Webhook if self.secret.len() < 16 => Err(InvalidValue::new(
                "has no secret of at least 16 characters to sign with",
                "write it before the host: https://:secret@host/path; make one with openssl rand -hex 32",
            )),
            Channel::PagerDuty if self.secret.is_empty() || !fits_a_header => Err(InvalidValue::new(
                "has no routing key",
                "take the integration key of an Events API v2 integration, alone or as https://key@host",
            )),
            Channel::Grafana if self.secret.is_empty() || !fits_a_header => Err(InvalidValue::new(
                "has no token",
                "write that of a service account that may create annotations: https://:token@host",
            )),
            _ => Ok(self),
        }
    }

    /// The receiver, without what is secret.
    pub fn shown(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{}://{host}:{port}/***", self.url.scheme()),
            None => format!("{}://{host}/***", self.url.scheme()),
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver({} {})", self.channel, self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(channel: Channel, text: &str) -> Result<(String, String), String> {
        let target = Receiver::parse(channel, text).map_err(|fault| fault.to_string())?;
        Ok((target.url.to_string(), target.secret))
    }

    #[test]
    fn each_channel_has_its_endpoint_and_its_secret() {
        let ok = |channel, text, url: &str, secret: &str| {
            assert_eq!(parse(channel, text), Ok((url.to_owned(), secret.to_owned())));
        };
        let webhook = "https://:0123456789abcdef%2F@hooks.test/in?team=pay";
        ok(Channel::Webhook, webhook, "https://hooks.test/in?team=pay", "0123456789abcdef/");
        ok(Channel::Slack, "https://hooks.test/services/T/B/x", "https://hooks.test/services/T/B/x", "");
        ok(Channel::PagerDuty, "R0UT1NG", "https://events.pagerduty.com/v2/enqueue", "R0UT1NG");
        ok(Channel::PagerDuty, "https://R0UT1NG@eu.test", "https://eu.test/v2/enqueue", "R0UT1NG");
        ok(Channel::Grafana, "http://:glsa_x@g.test/sub/", "http://g.test/sub/api/annotations", "glsa_x");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_value() {
        for (channel, text, says) in [
            (Channel::Webhook, "https://hooks.test/SECRET", "no secret of at least 16"),
            (Channel::Webhook, "ftp://:SECRETSECRETSECRET@h/", "not an http or https URL"),
            (Channel::Slack, "SECRET", "not a URL"),
            (Channel::PagerDuty, "SEC RET", "no routing key"),
            (Channel::Grafana, "https://g.test/SECRET", "no token"),
            (Channel::Grafana, "file:/nowhere/at/all", "cannot be read"),
        ] {
            let fault = parse(channel, text).unwrap_err();
            assert!(fault.contains(says), "{text}: {fault}");
            assert!(!fault.contains("SECRET"), "{fault}");
        }
    }

    #[test]
    fn a_secret_may_come_from_a_file_and_is_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "https://hooks.test:8443/services/T0/B0/hush\n").unwrap();
        let target = Receiver::parse(Channel::Slack, &format!("file:{}", file.path().display())).unwrap();
        assert_eq!(target.url.path(), "/services/T0/B0/hush");
        assert_eq!(format!("{target:?}"), "Receiver(slack https://hooks.test:8443/***)");
    }
}
