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
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from known import HERE, all_labels, base, exposed, families, known_to_prometheus, label_values, named_metrics, recorded, selectors
from live import ALLOWED, BUILT_IN, Live

TARGET = {"job", "instance"}
VARIABLES = ["datasource", "job", "instance", "pool", "app"]


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


if __name__ == "__main__":
    sys.exit(main())
