"""What there is to be named in a query, and which names a query has. Standard library only."""

import functools
import re
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
RULES = HERE / "prometheus/rules"
SNAPSHOT = HERE.parent / "crates/telemetry/src/telemetry/snapshots/pgleash_telemetry__telemetry__tests__catalogue.snap"

# Made by Prometheus itself, with the labels that it gives.
SYNTHETIC = {"up": set(), "scrape_duration_seconds": set(), "scrape_samples_scraped": set(),
             "ALERTS": {"alertname", "alertstate", "severity", "pool", "cause"}}
# In the trial the same Prometheus scrapes a job that is no pgleash; the value of all its metrics is beyond any of pgleash's.
FOREIGN, OUTRAGEOUS = "foreign", 1e18
# Words of PromQL that are neither a function (which has a parenthesis) nor a metric.
KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "and", "or", "unless", "inf", "nan", "atan2"}


def selectors(expression):
    """(metric, [(label, operator, value)]) of every vector selector that has matchers."""
    for metric, inner in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression):
        yield metric, re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"', inner)


def named_metrics(expression):
    """The metrics that a PromQL expression names."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', "", expression)  # strings
    text = re.sub(r"\{[^}]*\}", " ", re.sub(r"\$\{?\w+\}?", "", text))  # variables, label matchers
    text = re.sub(r"\[[^\]]*\]", " ", text)  # ranges
    text = re.sub(r"\boffset\s+\w+", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)  # label lists
    words = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)\b(?!\s*\()", text)
    return {word for word in words if word.lower() not in KEYWORDS}


def catalogue():
    """Series names that pgleash exposes, as its own test pins them."""
    return set(families()) | {f"{name}_{part}" for name, kind in families().items() if kind == "histogram" for part in ("bucket", "sum", "count")}


def known_to_prometheus():
    return set(SYNTHETIC)


@functools.cache
def families():
    return dict(re.findall(r"^(\w+) \((\w+)\)$", SNAPSHOT.read_text(), re.MULTILINE))


@functools.cache
def label_values():
    """(metric, label) -> the values of a closed set."""
    values, family = defaultdict(set), None
    for line in SNAPSHOT.read_text().splitlines():
        if line in (f"{name} ({kind})" for name, kind in families().items()):
            family = line.split()[0]
        elif family and line.startswith("    "):
            for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', line):
                for name in (family, *(f"{family}_{part}" for part in ("bucket", "sum", "count"))):
                    values[name, label].add(value)
    return values


@functools.cache
def all_labels():
    """Metric -> its labels, besides those of the target."""
    labels = {name: {label for metric, label in label_values() if metric == name} for name in catalogue()}
    return labels | SYNTHETIC | {name: {"pool"} for name in recorded()}


@functools.cache
def recorded():
    return [name for path in sorted(RULES.glob("*.yml")) for name in re.findall(r"^ *- record: (\S+)$", path.read_text(), re.MULTILINE)]


def base(series):
    """The family of a histogram's series."""
    return re.sub(r"_(bucket|sum|count)$", "", series)


def exposed(text):
    """The series names in a /metrics dump, with the families that are announced and have no series yet."""
    for line in text.splitlines():
        announced = re.match(r"# TYPE (\S+) (\S+)", line)
        if announced:
            family, kind = announced.groups()
            yield family
            yield from (f"{family}_{part}" for part in ("bucket", "sum", "count") if kind == "histogram")
        elif line and not line.startswith("#"):
            yield re.match(r"[\w:]*", line).group(0)
