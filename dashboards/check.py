#!/usr/bin/env python3
"""Checks the Grafana boards beside this file, and with --prometheus the rules as well. Standard library only.

Always, offline: each board is JSON with a uid of its own, the variables of the house, links to the other boards that
keep time and variables, and problems first. Panels have ids of their own, cover the grid without overlap or hole, and
have a title, a description, a unit, thresholds and the data source of the variable. Every query names metrics, labels
and label values that pgleash has (from its metric snapshot) and heeds the variables that its metrics have labels for.

  --metrics FILE    a /metrics dump: every metric that a query names must be in it
  --prometheus URL  every query of a panel, a variable or an annotation must be answered, with everything selected and
                    with one value of each variable, and with the labels that its legend names; every rule must be
                    healthy, and whatever a rule looks at must be there
  --no-empty        with --prometheus: without data is a fault, unless may-be-empty.json gives a reason

Exit code: 0 all is well, 1 something is wrong (one line for each fault).
"""

import argparse
import functools
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RULES = HERE / "prometheus/rules"
SNAPSHOT = ROOT / "src/telemetry/snapshots/pgleash__telemetry__tests__catalogue.snap"
ALLOWED = HERE / "may-be-empty.json"

# Made by Prometheus itself, with the labels that it gives.
SYNTHETIC = {"up": set(), "scrape_duration_seconds": set(), "scrape_samples_scraped": set(),
             "ALERTS": {"alertname", "alertstate", "severity", "pool", "cause"}}
TARGET = {"job", "instance"}
VARIABLES = ["datasource", "job", "instance", "pool", "app"]
# Words of PromQL that are neither a function (which has a parenthesis) nor a metric.
KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "and", "or", "unless", "inf", "nan", "atan2"}
# What Grafana puts in by itself.
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "30m"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, help="a /metrics dump in Prometheus's text format")
    parser.add_argument("--prometheus", help="URL of a Prometheus that scrapes pgleash and evaluates its rules")
    parser.add_argument("--no-empty", action="store_true", help="a query without data is a fault")
    parser.add_argument("boards", nargs="*", type=Path, help="board files (all beside this script)")
    options = parser.parse_args()
    faults = []
    paths = options.boards or [path for path in sorted(HERE.glob("*.json")) if path != ALLOWED]
    boards = list(load(paths, faults))
    for name, board in boards:
        check_board(name, board, {other["uid"] for _, other in boards}, faults)
    queries = [query for name, board in boards for query in every_query(name, board)]
    for query in queries:
        check_query(query, faults)
    if options.metrics:
        there = set(exposed(options.metrics.read_text())) | known_to_prometheus() | set(recorded())
        faults += [f"{query.where}: metric {metric} is not in {options.metrics}"
                   for query in queries for metric in sorted(named_metrics(query.expression) - there)]
    if options.prometheus:
        Live(options.prometheus, options.no_empty, faults).check(queries)
    for fault in faults:
        print(fault)
    shown = {metric for query in queries for metric in named_metrics(query.expression)}
    unshown = sorted(family for family in families() if not any(base(metric) == family for metric in shown))
    print(f"not on any board: {', '.join(unshown) or 'nothing'}")
    print(f"{len(boards)} boards, {len(queries)} queries, {len(faults)} faults")
    return 1 if faults else 0


def load(paths, faults):
    uids = {}
    for path in paths:
        try:
            text = path.read_text()
            board = json.loads(text)
        except (OSError, ValueError) as error:
            faults.append(f"{path.name}: {error}")
            continue
        faults += [f"{path.name}: has no {key}" for key in ("uid", "title", "description", "panels", "links") if not board.get(key)]
        if "${DS_" in text:
            faults.append(f"{path.name}: has a ${{DS_...}}, which only an import by hand fills in")
        if "id" in board:
            faults.append(f"{path.name}: has an 'id', which belongs to one Grafana's database; remove it")
        if not 39 <= board.get("schemaVersion", 0) <= 41:
            faults.append(f"{path.name}: schemaVersion {board.get('schemaVersion')} is not 39 to 41")
        if re.search(r'"#[0-9a-fA-F]{3,8}"', text):
            faults.append(f"{path.name}: has a colour by number, which is not chosen for both light and dark")
        other = uids.setdefault(board.get("uid"), path.name)
        if other != path.name:
            faults.append(f"{path.name}: uid {board.get('uid')} is taken by {other}")
        yield path.name, board


# --- boards ---

def check_board(name, board, uids, faults):
    faults += [f"{name}: {fault}" for fault in [*check_variables(board), *check_links(board, uids), *check_grid(board)]]
    panels = board["panels"]
    if panels[0].get("type") != "row" or panels[0].get("title") != "Active problems":
        faults.append(f"{name}: does not begin with a row 'Active problems'")
    annotations = [annotation.get("name") for annotation in board["annotations"]["list"]]
    if len(set(annotations)) != len(annotations) or not annotations:
        faults.append(f"{name}: has no annotations, or two of one name")
    ids, titles = set(), set()
    for panel in panels:
        where = f"{name}: panel '{panel.get('title')}'"
        for kind, value, taken in [("id", panel.get("id"), ids), ("title", panel.get("title"), titles)]:
            if value in taken:
                faults.append(f"{where}: its {kind} is taken")
            taken.add(value)
        if panel.get("type") != "row":
            faults += [f"{where}: {fault}" for fault in check_panel(panel, uids)]


def check_variables(board):
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    if list(variables) != VARIABLES:
        yield f"its variables are {', '.join(variables)} and not {', '.join(VARIABLES)}"
    text = json.dumps([board["panels"], board["annotations"]])
    for name, variable in variables.items():
        if not re.search(rf"\$\{{?{name}\b", text):
            yield f"no panel heeds ${name}"
        if name != "datasource" and (not variable.get("multi") or not variable.get("includeAll") or variable.get("allValue") != ".+"):
            yield f"${name} does not take several values, or All is not .+"
        if name != "datasource" and variable.get("definition") != variable.get("query", {}).get("query"):
            yield f"${name}: definition and query differ"


def check_links(board, uids):
    linked = set()
    for link in board["links"]:
        linked.add(link.get("url", "").removeprefix("/d/"))
        if not (link.get("keepTime") and link.get("includeVars")):
            yield f"the link to {link.get('url')} loses time or variables"
    if linked != uids - {board["uid"]}:
        yield f"links to {sorted(linked)} and not to each other board"


def check_grid(board):
    """Nothing overlaps, and between the first and the last line nothing is left empty."""
    taken = defaultdict(dict)
    for panel in board["panels"]:
        place = panel["gridPos"]
        for y in range(place["y"], place["y"] + place["h"]):
            for x in range(place["x"], place["x"] + place["w"]):
                if x in taken[y]:
                    yield f"panel '{panel['title']}' lies on '{taken[y][x]}'"
                    return
                taken[y][x] = panel["title"]
    for y in range(max(taken) + 1):
        if set(taken[y]) != set(range(24)):
            yield f"line {y} of the grid is not covered from 0 to 24"
            return


def check_panel(panel, uids):
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    for what, value in [
        ("title", panel.get("title")),
        ("description", len(panel.get("description", "")) > 25),
        ("query", panel.get("targets")),
        ("unit", defaults.get("unit")),
        ("thresholds", defaults.get("thresholds", {}).get("steps")),
    ]:
        if not value:
            yield f"has no {what}"
    references = [target.get("refId") for target in panel["targets"]]
    if len(set(references)) != len(references):
        yield "two queries have one refId"
    for source in [panel.get("datasource"), *(target.get("datasource") for target in panel["targets"])]:
        if (source or {}).get("uid") != "${datasource}":
            yield "its data source is not the variable ${datasource}"
    if panel["type"] == "heatmap" and (panel["options"].get("calculate") is not False or {target.get("format") for target in panel["targets"]} != {"heatmap"}):
        yield "a heatmap of our buckets needs calculate false and format heatmap"
    for link in defaults.get("links", []):
        target, _, arguments = link["url"].partition("?")
        if target.removeprefix("/d/") not in uids or "${__url_time_range}" not in arguments or "${__all_variables}" not in arguments:
            yield f"its link to {link['url']} leads nowhere, or loses time or variables"
    for override in panel["fieldConfig"].get("overrides", []):
        if override["matcher"]["id"] == "byName" and panel["type"] == "table":
            columns = {name for step in panel.get("transformations", []) for name in step["options"].get("renameByName", {}).values()}
            if override["matcher"]["options"] not in columns:
                yield f"an override is for '{override['matcher']['options']}', which is no column"


# --- queries ---

class Query:
    """One query: of a panel, an annotation or a variable."""

    def __init__(self, board, title, reference, expression, legend="", instant=False):
        self.board, self.title, self.reference = board, title, reference
        self.expression, self.legend, self.instant = expression, legend, instant
        self.where = f"{board}: {title} {reference}".rstrip()

    def key(self):
        return self.board, self.title, self.reference


def every_query(name, board):
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield Query(name, panel["title"], target["refId"], target["expr"], target.get("legendFormat", ""), target.get("instant", False))
    for annotation in board["annotations"]["list"]:
        yield Query(name, f"annotation {annotation['name']}", "", annotation["expr"], annotation["titleFormat"] + annotation["textFormat"])
    for variable in board["templating"]["list"]:
        match = re.fullmatch(r"label_values\((.*), *(\w+)\)", variable.get("definition", ""))
        if match:
            yield Query(name, f"variable {variable['name']}", "", match.group(1), f"{{{{{match.group(2)}}}}}", True)


def check_query(query, faults):
    defined = set(VARIABLES) | set(BUILT_IN)
    for first, second in re.findall(r"\$(?:\{(\w+)[^}]*\}|(\w+))", query.expression):
        if (first or second) not in defined:
            faults.append(f"{query.where}: variable ${first or second} is not defined")
    for metric in sorted(named_metrics(query.expression) - set(all_labels())):
        faults.append(f"{query.where}: there is no metric {metric}")
    for metric, matchers in selectors(query.expression):
        labels = all_labels().get(metric)
        if labels is None:
            continue
        for label, operator, value in matchers:
            if label not in labels | TARGET:
                faults.append(f"{query.where}: {metric} has no label {label}")
            known = label_values().get((metric, label))
            if label not in ("app", "pool") and known and not value.startswith("$") and operator in ("=", "=~"):
                faults += [f"{query.where}: {metric} never has {label}={part}" for part in value.split("|") if part not in known]
        if not query.title.startswith("variable"):
            heeded = {label for label, _, value in matchers if value == f"${label}"}
            for label in ("job", "instance", *({"pool", "app"} & labels)):
                if label not in heeded and metric != "ALERTS":
                    faults.append(f"{query.where}: {metric} does not heed ${label}")
    for labels in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query.expression):
        possible = TARGET.union({"le"}, *(all_labels().get(metric, set()) for metric in named_metrics(query.expression)))
        faults += [f"{query.where}: nothing in it has a label {label}" for label in re.split(r"\s*,\s*", labels.strip()) if label and label not in possible]


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


# --- what there is ---

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


# --- against a Prometheus ---

class Live:
    """A Prometheus in which an incident has been seen."""

    def __init__(self, url, no_empty, faults):
        self.url, self.no_empty, self.faults = url.rstrip("/"), no_empty, faults
        self.allowed = {(entry["board"], entry["title"], entry["query"]): entry["reason"] for entry in json.loads(ALLOWED.read_text())}

    def check(self, queries):
        known = {query.key() for query in queries} | {("rules", name, "") for name in recorded()}
        for key, reason in self.allowed.items():
            if key not in known or not reason:
                self.faults.append(f"{ALLOWED.name}: {key} is no query, or has no reason")
        chosen = {name: self.value_of(queries, name) for name in VARIABLES[1:]}
        for query in queries:
            self.ask(query, {})
            self.ask(query, chosen)
        self.check_rules()

    def value_of(self, queries, name):
        query = next(query for query in queries if query.title == f"variable {name}")
        found = self.get("series", {"match[]": fill(query.expression, {})}, query.where) or []
        values = sorted({one.get(name, "") for one in found} - {"", "other", "unset"})
        if not values:
            self.faults.append(f"{query.where}: has no values")
        return values[0] if values else ".+"

    def ask(self, query, chosen):
        expression = fill(query.expression, chosen)
        series = self.evaluate(expression, query.where, query.instant)
        if not series:
            if self.no_empty and query.key() not in self.allowed:
                self.faults.append(f"{query.where}: no data: {expression}")
            elif self.no_empty:
                self.check_selectors(query.where, expression)
            return
        for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
            if not any(label in one["metric"] for one in series):
                self.faults.append(f"{query.where}: its legend says {label}, and no answer has that label")

    def check_rules(self):
        groups = (self.get("rules", {}, "rules") or {"groups": []})["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        written = sum(len(re.findall(r"^ *- (?:alert|record):", path.read_text(), re.MULTILINE)) for path in RULES.glob("*.yml"))
        if len(rules) != written:
            self.faults.append(f"rules: {len(rules)} are loaded and {written} are written")
        for rule in rules:
            where = f"rules: {rule['name']}"
            if rule["health"] != "ok" or rule.get("lastError"):
                self.faults.append(f"{where}: {rule['health']}: {rule.get('lastError')}")
            if rule["type"] == "recording" and self.no_empty and ("rules", rule["name"], "") not in self.allowed:
                if not self.evaluate(rule["name"], where, False):
                    self.faults.append(f"{where}: no data")
            if self.no_empty:
                self.check_selectors(where, rule["query"])
        print(f"{len(rules)} rules are loaded")

    def check_selectors(self, where, expression):
        """What may be empty, or is so while nothing is wrong, must at least look at series that are there."""
        for selector in set(re.findall(r"[a-zA-Z_:][\w:]*\{[^}]*\}", expression)) | named_metrics(expression):
            name = selector.partition("{")[0]
            if ("rules", name, "") not in self.allowed and not self.evaluate(selector, where, False):
                self.faults.append(f"{where}: looks at {selector}, which is not there")

    def evaluate(self, expression, where, instant):
        """The series that have a value that is one."""
        now = time.time()
        arguments = {"query": expression, "time": now} if instant else {"query": expression, "start": now - 120, "end": now, "step": 5}
        data = self.get("query" if instant else "query_range", arguments, where)
        series = data["result"] if data else []
        return [one for one in series if any(value != "NaN" for _, value in one.get("values", [one.get("value")]))]

    def get(self, path, arguments, where):
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}", timeout=10) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            self.faults.append(f"{where}: Prometheus says {error.read().decode(errors='replace')}")
            return None
        except OSError as error:
            self.faults.append(f"{where}: {self.url} does not answer: {error}")
            return None
        self.faults += [f"{where}: Prometheus warns: {warning}" for warning in answer.get("warnings", [])]
        return answer["data"]


def fill(expression, chosen):
    """As Grafana would: everything selected, or the one value that was chosen."""
    for name, value in BUILT_IN.items():
        expression = re.sub(rf"\$\{{?{name}\b\}}?", value, expression)
    for name in VARIABLES[1:]:
        value = re.escape(chosen[name]).replace("\\", "\\\\") if name in chosen else ".+"
        expression = re.sub(rf"\$\{{?{name}\b\}}?", lambda _, value=value: value, expression)
    return expression


if __name__ == "__main__":
    sys.exit(main())
