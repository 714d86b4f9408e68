//! Exemptions: whose pauses may be longer, or are never a leak.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::PoolKey;
use crate::policy::Allowance;

/// A pattern in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern(String);

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            match rest.find(part) {
                Some(place) => rest = &rest[place + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    App,
    User,
    Database,
    Route,
}

impl What {
    const NAMES: [(&'static str, What); 4] =
        [("app", What::App), ("user", What::User), ("database", What::Database), ("route", What::Route)];
}

/// One exemption: who is meant, and what is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    who: Vec<(What, Pattern)>,
    grant: Allowance,
}

/// The rules in their order; the first that applies counts. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Arc<[Rule]>);

impl Rules {
    /// Reads `app=nightly*, user=etl never; route=GET /export 10m`. Empty, or `off`: none.
    ///
    /// # Errors
    /// What is wrong, in which rule.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || text == "off" {
            return Ok(Self::default());
        }
        text.split(';').map(Rule::parse).collect::<Result<Vec<_>, _>>().map(|rules| Self(rules.into()))
    }

    /// What is granted to this work.
    pub fn grant(&self, pool: &PoolKey, app: &str, route: Option<&str>) -> Allowance {
        let applies = |rule: &&Rule| {
            rule.who.iter().all(|(what, pattern)| match what {
                What::App => pattern.matches(app),
                What::User => pattern.matches(&pool.user),
                What::Database => pattern.matches(&pool.database),
                What::Route => route.is_some_and(|route| pattern.matches(route)),
            })
        };
        self.0.iter().find(applies).map_or(Allowance::Usual, |rule| rule.grant)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = |why: &str| format!("rule {text:?}: {why}");
        let (who, grant) = text.rsplit_once(char::is_whitespace).ok_or_else(|| {
            wrong("needs who is meant and, behind a space, never or a duration, as in app=nightly* 10m")
        })?;
        let grant = match grant {
            "never" => Allowance::Always,
            _ => humantime::parse_duration(grant)
                .ok()
                .filter(|length| *length > Duration::ZERO)
                .map(Allowance::AtLeast)
                .ok_or_else(|| wrong("must end in never, or in a duration such as 10m"))?,
        };
        let one = |part: &str| {
            let (name, pattern) = part.split_once('=').ok_or_else(|| wrong("needs name=pattern"))?;
            let (_, what) = What::NAMES
                .into_iter()
                .find(|(known, _)| *known == name.trim())
                .ok_or_else(|| wrong("knows app, user, database and route"))?;
            Ok((what, Pattern(pattern.trim().to_owned())))
        };
        Ok(Self { who: who.split(',').map(one).collect::<Result<_, String>>()?, grant })
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("off");
        }
        for (n, rule) in self.0.iter().enumerate() {
            f.write_str(if n == 0 { "" } else { "; " })?;
            for (n, (what, pattern)) in rule.who.iter().enumerate() {
                let name = What::NAMES.iter().find(|(_, known)| known == what).map_or("", |(name, _)| name);
                write!(f, "{}{name}={}", if n == 0 { "" } else { ", " }, pattern.0)?;
            }
            match rule.grant {
                Allowance::AtLeast(length) => write!(f, " {}", humantime::format_duration(length))?,
                Allowance::Always | Allowance::Usual => f.write_str(" never")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(rules: &str, app: &str, route: Option<&str>) -> Allowance {
        Rules::parse(rules).unwrap().grant(&PoolKey::new("shop", "etl"), app, route)
    }

    const TEN_MINUTES: Allowance = Allowance::AtLeast(Duration::from_secs(600));

    #[test]
    fn the_first_rule_that_applies_counts() {
        let rules = "app=nightly*, user=etl never; route=GET /export 10m; app=* 2m";
        assert_eq!(grant(rules, "nightly@7", None), Allowance::Always);
        assert_eq!(grant(rules, "web", Some("GET /export")), TEN_MINUTES);
        assert_eq!(grant(rules, "web", None), Allowance::AtLeast(Duration::from_secs(120)));
        assert_eq!(grant("user=other never", "nightly", None), Allowance::Usual);
        assert_eq!(grant("off", "nightly", None), Allowance::Usual);
        assert_eq!(grant("route=* never", "web", None), Allowance::Usual, "no route is not any route");
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, fits) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*a", "a", false),
            ("*batch*", "my-batch-2", true),
            ("*a*b*", "xbya", false),
            ("web", "web@2", false),
            ("*", "", true),
            ("", "", true),
        ] {
            assert_eq!(Pattern(pattern.to_owned()).matches(text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_rule() {
        for (text, why) in [
            ("app=x", "needs who is meant"),
            ("app=x soon", "must end in never"),
            ("app=x 0s", "must end in never"),
            ("name=x never", "knows app, user"),
            ("x never", "needs name=pattern"),
            ("app=x never;", "needs who is meant"),
        ] {
            let told = Rules::parse(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn they_are_shown_as_they_are_written() {
        for text in ["off", "app=nightly*, user=etl never; route=GET /export 10m"] {
            assert_eq!(Rules::parse(text).unwrap().to_string(), text);
        }
    }
}
