//! The words of a notice.

use std::fmt;
use std::time::Duration;

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};
use pgleash_core::InvalidValue;

use crate::notify::incident::{Notice, Severity, Status};

/// `events.template`: Jinja's syntax, by minijinja.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// What is said if nothing else is asked for.
    pub const DEFAULT: &str = "{{ instance }}: {{ summary }}";
    /// Bytes of a template, and characters of what it makes.
    const LONGEST: usize = 4096;

    /// Reads a template, and sees that it works.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.trim().is_empty() || text.len() > Self::LONGEST {
            return Err(InvalidValue::new("is empty or longer than 4096 bytes", "write a sentence"));
        }
        let template = Self(text.to_owned());
        template.try_render("host", &sample()).map_err(|error| {
            InvalidValue::new(
                format!("does not work: {error}"),
                "use instance, status, severity, what, pool, app, count and summary, as {{ summary }}",
            )
        })?;
        Ok(template)
    }

    /// The text for a notice; its summary if the template fails on it.
    pub(super) fn render(&self, instance: &str, notice: &Notice) -> String {
        let text = self.try_render(instance, notice).unwrap_or_else(|_| notice.summary.clone());
        text.chars().take(Self::LONGEST).collect()
    }

    fn try_render(&self, instance: &str, notice: &Notice) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.render_named_str(
            "events.template",
            &self.0,
            context! {
                instance,
                ..minijinja::Value::from(Serde(notice))
            },
        )
    }
}

impl Default for Template {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn sample() -> Notice {
    Notice {
        status: Status::Triggered,
        severity: Severity::Warning,
        key: String::new(),
        what: "idle_in_transaction",
        pool: "app@payments".to_owned(),
        app: "checkout".to_owned(),
        count: 3,
        summary: "checkout <holds> a connection".to_owned(),
        began: Duration::ZERO,
        at: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_what_it_is_told_to() {
        let template = Template::parse("[{{ severity }}] {{ pool }}: {{ summary }} ({{ count }})").unwrap();
        assert_eq!(
            template.render("host", &sample()),
            "[warning] app@payments: checkout <holds> a connection (3)"
        );
        assert_eq!(Template::default().render("pod-7", &sample()), "pod-7: checkout <holds> a connection");
    }

    #[test]
    fn one_that_does_not_work_is_refused_when_it_is_read() {
        for text in ["", "{{ summary", "{{ nobody_knows }}", "{% for x in %}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
