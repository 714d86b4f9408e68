#!/usr/bin/env python3
"""Checks dashboards/prometheus/rules for what promtool lets pass: names, severities, texts without a value, runbooks that
are not there or say too little, metrics that pgleash does not have, alerts that no test sees firing and silent.
Needs PyYAML."""

import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "dashboards"))
from known import catalogue, known_to_prometheus, named_metrics  # noqa: E402

RULES = ROOT / "dashboards/prometheus/rules"
TESTS = ROOT / "dashboards/prometheus/tests/alerts.yml"
SECTIONS = ["## Meaning", "## What to look at", "## What to do", "## How to silence wisely"]
# What an alert cannot have a value of: there is nothing.
WITHOUT_VALUE = {("PgleashWatchdogBlind", "absent")}


def main() -> int:
    rules = [rule for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    alerts = [rule for rule in rules if "alert" in rule]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    faults = []
    for alert in alerts:
        faults += [f"{alert['alert']} ({alert['labels'].get('severity')}): {fault}" for fault in check_alert(alert)]
    for name in recorded:
        if not re.fullmatch(r"pool:pgleash_\w+:\w+", name):
            faults.append(f"{name} is not level:metric:operation")
    known = catalogue() | known_to_prometheus() | recorded
    for rule in rules:
        for metric in sorted(named_metrics(rule["expr"]) - known):
            faults.append(f"{rule.get('alert') or rule.get('record')}: pgleash has no metric {metric}")
    names = {alert["alert"] for alert in alerts}
    page = ROOT / "docs/boards-and-alerts.md"
    listed = set(re.findall(r"^\| \[`(Pgleash\w+)`\]", page.read_text(), re.MULTILINE))
    faults += [f"{name}: is either not in the table of {page.name} or only there" for name in sorted(names ^ listed)]
    for path in (ROOT / "docs/runbooks").glob("*.md"):
        if path.stem not in names:
            faults.append(f"{path.name} is the runbook of no alert")
    faults += check_tests(alerts)
    for fault in faults:
        print(f"rules: {fault}")
    print(f"{len(recorded)} recording rules, {len(alerts)} alerting rules of {len(names)} names, {len(faults)} faults")
    return 1 if faults else 0


def check_alert(alert):
    if not re.fullmatch(r"Pgleash([A-Z][A-Za-z]+)+", alert["alert"]):
        yield "the name is not CamelCase with the prefix Pgleash"
    if alert["labels"].get("severity") not in ("critical", "warning"):
        yield "severity is neither critical nor warning"
    texts = alert.get("annotations", {})
    for key in ("summary", "description", "runbook_url"):
        if not texts.get(key):
            yield f"has no {key}"
    valueless = (alert["alert"], alert["labels"].get("cause")) in WITHOUT_VALUE
    if "$value" not in texts.get("description", "") and not valueless:
        yield "the description has no value"
    runbook = texts.get("runbook_url", "")
    if runbook != f"docs/runbooks/{alert['alert']}.md" or not (ROOT / runbook).is_file():
        yield f"{runbook} is not its runbook"
        return
    lines = (ROOT / runbook).read_text().splitlines()
    if lines[0] != f"# {alert['alert']}":
        yield f"{runbook} has another title"
    for section in SECTIONS:
        if section not in lines:
            yield f"{runbook} has no section '{section}'"
    for link in re.findall(r"\]\(([^)#]+)\)", "\n".join(lines)):
        if not (ROOT / "docs/runbooks" / link).is_file():
            yield f"{runbook} links to {link}, which is not there"


def check_tests(alerts):
    """Each rule is seen firing, with its words, and its alert is seen silent."""
    fired, silent = set(), set()
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            if not case["exp_alerts"]:
                silent.add(case["alertname"])
            fired |= {identity(case["alertname"], expected["exp_labels"]) for expected in case["exp_alerts"]}
    for alert in alerts:
        if identity(alert["alert"], alert["labels"]) not in fired:
            yield f"no test sees {alert['alert']} with {alert['labels']} fire"
        if alert["alert"] not in silent:
            yield f"no test sees {alert['alert']} silent"


def identity(name, labels):
    return name, labels.get("severity"), labels.get("cause"), labels.get("window")


if __name__ == "__main__":
    sys.exit(main())
