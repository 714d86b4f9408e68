//! `admin_hosts`: under which names the HTTP listeners may be asked.

use std::fmt;

use pgleash_core::InvalidValue;

/// Names besides addresses and `localhost`, which always may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    const OFF: &'static str = "off";
    /// Every name.
    const ANY: &'static str = "*";
    /// More names than one pgleash is known by.
    const MOST: usize = 64;
    /// Of a name in the DNS.
    const LONGEST: usize = 253;

    /// Reads names with commas between; one that begins with `*.` is all names that end so.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text == Self::OFF {
            return Ok(Self::default());
        }
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_lowercase()).collect();
        if names.len() > Self::MOST {
            return Err(InvalidValue::new(
                format!("has more than {} names", Self::MOST),
                "write *.domain for many",
            ));
        }
        if names.iter().all(|name| is_name(name)) {
            Ok(Self(names))
        } else {
            Err(InvalidValue::new(
                "has something that is no name of a host",
                "write names alone, without http:// and without a port, with commas between",
            ))
        }
    }

    /// Whether one may ask under `name`, which has no port. Letters count the same in either case.
    pub fn admit(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_lowercase();
        self.0.iter().any(|known| match known.strip_prefix('*') {
            Some(ending) => name.len() > ending.len() && name.ends_with(ending),
            None => *known == name,
        })
    }
}

fn is_name(name: &str) -> bool {
    let plain = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name == Hosts::ANY || (name.len() <= Hosts::LONGEST && plain.split('.').all(is_label))
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str(Self::OFF) } else { f.write_str(&self.0.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_whole_by_their_ending_or_all() {
        let hosts = Hosts::parse("pgleash, *.Example.com").unwrap();
        for known in ["pgleash", "PGLEASH", "pgleash.", "a.example.com", "a.b.example.com"] {
            assert!(hosts.admit(known), "{known}");
        }
        for foreign in ["", ".", "example.com", "badexample.com", ".example.com", "pgleash.evil.test", "*"] {
            assert!(!hosts.admit(foreign), "{foreign}");
        }
        assert_eq!(hosts.to_string(), "pgleash, *.example.com");
        assert!(Hosts::parse("*").unwrap().admit("whatever.test"));
        assert!(!Hosts::parse("off").unwrap().admit("off"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let many = "a,".repeat(Hosts::MOST) + "a";
        for wrong in ["", ",", "a,,b", "http://a", "a:9632", "a b", "*a", "a.*", "a/", "[::1]", "é", &many] {
            assert!(Hosts::parse(wrong).is_err(), "{wrong}");
        }
    }
}
