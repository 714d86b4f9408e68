//! Samples of a `/metrics` page.

use std::collections::BTreeMap;

/// A parsed page.
#[derive(Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text format; panics at a line that is not of it.
    pub fn parse(page: &str) -> Metrics {
        let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Metrics { samples: lines.map(Sample::parse).collect() }
    }

    /// The sum over every sample of this name (without `pgleash_`) that has these labels.
    ///
    /// Panics if there is none: counters are there from the start, at 0.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("pgleash_{name}");
        let has = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        let mut found = self.samples.iter().filter(has).peekable();
        assert!(found.peek().is_some(), "no sample {name} {labels:?}; there are {:?}", self.names());
        found.map(|sample| sample.value).sum()
    }

    /// The names of all families, as in the samples.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.samples.iter().map(|sample| sample.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Sample {
    fn parse(line: &str) -> Sample {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
        let value = match value {
            "+Inf" => f64::INFINITY,
            "-Inf" => f64::NEG_INFINITY,
            value => value.parse().unwrap_or_else(|_| panic!("not a sample: {line}")),
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let mut pairs = BTreeMap::new();
        let mut rest = labels.trim_end_matches('}');
        while let Some((key, after)) = rest.split_once("=\"") {
            let end = after.find('"').unwrap_or_else(|| panic!("not a sample: {line}"));
            pairs.insert(key.trim_start_matches(',').to_owned(), after[..end].to_owned());
            rest = &after[end + 1..];
        }
        Sample { name: name.to_owned(), labels: pairs, value }
    }
}
