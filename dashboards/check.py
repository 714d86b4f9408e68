#!/usr/bin/env python3
"""Checks the Grafana boards beside this file. Standard library only.

Always, offline: each board is JSON with a title and a stable uid of its own; panels have ids of their own
and do not overlap; each panel has a title, a description, a unit, thresholds and the data source of the
`datasource` variable; every variable that a query uses is defined.

  --metrics FILE    a /metrics dump: every metric that a query names must be in it
  --prometheus URL  every query must be answered without an error
  --no-empty        with --prometheus: and must give data, unless its panel says what no data means (noValue)

Exit code: 0 all is well, 1 something is wrong (one line for each fault).
"""

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Made by Prometheus itself for every target, so not in any /metrics.
SYNTHETIC = {"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_scraped"}
# Words of PromQL that are neither a function (which has a parenthesis) nor a metric.
KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "and", "or", "unless", "inf", "nan", "atan2"}
# What Grafana puts in by itself.
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "30m"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, help="a /metrics dump in Prometheus's text format")
    parser.add_argument("--prometheus", help="URL of a Prometheus that scrapes pgleash")
    parser.add_argument("--no-empty", action="store_true", help="a query without data is a fault")
    parser.add_argument("boards", nargs="*", type=Path, help="board files (all beside this script)")
    options = parser.parse_args()
    paths = options.boards or sorted(HERE.glob("*.json"))
    faults = [] if paths else [f"{HERE}: there is no board"]
    boards = list(load(paths, faults))
    known = exposed(options.metrics.read_text()) if options.metrics else None
    queries = 0
    for name, board in boards:
        check_board(name, board, faults)
        for where, expression, may_be_empty in expressions(board):
            queries += 1
            where = f"{name}: {where}"
            check_variables(where, expression, board, faults)
            if known is not None:
                for metric in sorted(named_metrics(expression) - known - SYNTHETIC):
                    faults.append(f"{where}: metric {metric} is not in {options.metrics}")
            if options.prometheus:
                ask(options.prometheus, where, expression, options.no_empty and not may_be_empty, faults)
    for fault in faults:
        print(fault)
    if known is not None:
        shown = used(boards)
        unused = sorted({base(name) for name in known if name.startswith("pgleash_")} - shown)
        print(f"not on any board: {', '.join(unused) or 'nothing'}")
    print(f"{len(boards)} boards, {queries} queries, {len(faults)} faults")
    return 1 if faults else 0


def load(paths, faults):
    uids = {}
    for path in paths:
        try:
            board = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            faults.append(f"{path.name}: {error}")
            continue
        for key in ("uid", "title", "schemaVersion", "panels"):
            if not board.get(key):
                faults.append(f"{path.name}: has no {key}")
        if board.get("id"):
            faults.append(f"{path.name}: has an 'id', which belongs to one Grafana's database; remove it")
        if not 39 <= board.get("schemaVersion", 0) <= 41:
            faults.append(f"{path.name}: schemaVersion {board.get('schemaVersion')} is not 39 to 41")
        other = uids.setdefault(board.get("uid"), path.name)
        if other != path.name:
            faults.append(f"{path.name}: uid {board.get('uid')} is taken by {other}")
        yield path.name, board


def every_panel(board):
    for panel in board.get("panels", []):
        yield panel
        yield from panel.get("panels") or []


def check_board(name, board, faults):
    ids, taken = set(), {}
    for panel in every_panel(board):
        where = f"{name}: panel '{panel.get('title')}'"
        if panel.get("id") in ids:
            faults.append(f"{where}: id {panel.get('id')} is taken")
        ids.add(panel.get("id"))
        place = panel.get("gridPos", {})
        for x in range(place.get("x", 0), place.get("x", 0) + place.get("w", 0)):
            for y in range(place.get("y", 0), place.get("y", 0) + place.get("h", 0)):
                other = taken.setdefault((x, y), panel.get("title"))
                if other != panel.get("title"):
                    faults.append(f"{where}: lies on '{other}'")
                    break
        if panel.get("type") != "row":
            check_panel(where, panel, faults)


def check_panel(where, panel, faults):
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    for what, value in [
        ("title", panel.get("title")),
        ("description", panel.get("description")),
        ("query", panel.get("targets")),
        ("unit", defaults.get("unit")),
        ("thresholds", defaults.get("thresholds", {}).get("steps")),
    ]:
        if not value:
            faults.append(f"{where}: has no {what}")
    references = [target.get("refId") for target in panel.get("targets", [])]
    if len(set(references)) != len(references):
        faults.append(f"{where}: two queries have one refId")
    for source in [panel.get("datasource"), *(target.get("datasource") for target in panel.get("targets", []))]:
        if (source or {}).get("uid") != "${datasource}":
            faults.append(f"{where}: its data source is not the variable ${{datasource}}")


def expressions(board):
    """(where, expression, whether it may be empty) of every query on a board."""
    for panel in every_panel(board):
        for target in panel.get("targets", []):
            may_be_empty = bool(panel.get("fieldConfig", {}).get("defaults", {}).get("noValue"))
            yield f"panel '{panel.get('title')}'", target.get("expr", ""), may_be_empty
    for annotation in board.get("annotations", {}).get("list", []):
        if annotation.get("expr"):
            yield f"annotation '{annotation.get('name')}'", annotation["expr"], True
    for variable in board.get("templating", {}).get("list", []):
        if variable.get("type") == "query":
            text = variable.get("definition", "")
            match = re.fullmatch(r"label_values\((.*), *\w+\)", text)
            yield f"variable '{variable.get('name')}'", match.group(1) if match else text, False


def check_variables(where, expression, board, faults):
    defined = {variable.get("name") for variable in board.get("templating", {}).get("list", [])} | set(BUILT_IN)
    for first, second in re.findall(r"\$(?:\{(\w+)[^}]*\}|(\w+))", expression):
        if (first or second) not in defined:
            faults.append(f"{where}: variable ${first or second} is not defined")


def named_metrics(expression):
    """The metrics that a PromQL expression names."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', "", expression)  # strings
    text = re.sub(r"\{[^}]*\}", " ", re.sub(r"\$\{?\w+\}?", "", text))  # variables, label matchers
    text = re.sub(r"\[[^\]]*\]", " ", text)  # ranges
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)  # label lists
    words = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)\b(?!\s*\()", text)
    return {word for word in words if word.lower() not in KEYWORDS}


def used(boards):
    metrics = {metric for _, board in boards for _, expression, _ in expressions(board) for metric in named_metrics(expression)}
    return {base(metric) for metric in metrics}


def base(series):
    """The family of a histogram's series."""
    return re.sub(r"_(bucket|sum|count)$", "", series)


def exposed(text):
    """The series names in a /metrics dump, with the families that are announced and have no series yet."""
    names = set()
    for line in text.splitlines():
        announced = re.match(r"# TYPE (\S+) (\S+)", line)
        if announced:
            family, kind = announced.groups()
            names.add(family)
            if kind == "histogram":
                names |= {f"{family}_{part}" for part in ("bucket", "sum", "count")}
            elif kind == "summary":
                names |= {f"{family}_{part}" for part in ("sum", "count")}
        elif line and not line.startswith("#"):
            names.add(re.match(r"[\w:]*", line).group(0))
    return names


def ask(url, where, expression, must_have_data, faults):
    query = expression
    for name, value in BUILT_IN.items():
        query = re.sub(rf"\$\{{?{name}\b\}}?", value, query)
    query = re.sub(r"\$\{\w+[^}]*\}|\$\w+", ".*", query)
    now = time.time()
    parameters = urllib.parse.urlencode({"query": query, "start": now - 300, "end": now, "step": 15})
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/query_range?{parameters}", timeout=10) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        faults.append(f"{where}: Prometheus says {error.read().decode(errors='replace')}")
        return
    except OSError as error:
        faults.append(f"{where}: {url} does not answer: {error}")
        return
    for warning in answer.get("warnings", []):
        faults.append(f"{where}: Prometheus warns: {warning}")
    series = answer.get("data", {}).get("result", [])
    if must_have_data and not any(value != "NaN" for one in series for _, value in one["values"]):
        faults.append(f"{where}: no data: {query}")


if __name__ == "__main__":
    sys.exit(main())
