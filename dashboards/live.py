"""The boards' queries and the rules against a Prometheus. Standard library only."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request

from known import FOREIGN, HERE, OUTRAGEOUS, RULES, named_metrics, recorded

ALLOWED = HERE / "may-be-empty.json"
VARIABLES = ["job", "instance", "pool", "app"]
# What Grafana puts in by itself.
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "30m"}


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
        chosen = {name: self.value_of(queries, name) for name in VARIABLES}
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
        self.check_whose(query.where, series)
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

    def check_whose(self, where, series):
        """A board shows pgleash's processes and no others."""
        for one in series:
            values = [float(value) for _, value in one.get("values", [one.get("value")])]
            if FOREIGN in one["metric"].values() or any(OUTRAGEOUS / 1000 < abs(value) < float("inf") for value in values):
                self.faults.append(f"{where}: shows a process that is no pgleash: {one['metric']}")
                return

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
    for name in VARIABLES:
        value = re.escape(chosen[name]).replace("\\", "\\\\") if name in chosen else ".+"
        expression = re.sub(rf"\$\{{?{name}\b\}}?", lambda _, value=value: value, expression)
    return expression
