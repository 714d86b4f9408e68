#!/usr/bin/env python3
"""Checks deploy/helm with `helm template`, without a cluster: what the charts render is valid by the schemas, the sidecar
is added to each kind and changes nothing else, the time to stop is never lowered, rules and boards are those of this
repository, pgleash accepts the configuration, and wrong values are refused. Needs what deploy/check installs."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
from manifests import KINDS, built, check_injected, check_policy, check_schemas, grace, load, template_of, version  # noqa: E402

CHART, EXAMPLE = HERE / "pgleash", HERE / "example"
RUNBOOKS = "https://runbooks.example/pgleash"
# Values of the chart that must be refused, by its schema or by Helm.
REFUSED = ["drainTimeoutSeconds=soon", "drainTimeoutSeconds=-1", "prometheusRule.enabled=true", "prometheusRule.runbooks=docs/runbooks",
           "image.digest=sha256:1", "networkPolicy.applicationPorts={0}", "podMonitor.labels.release=1", "poolSize=20"]
# Workloads that nothing can be added to.
UNFIT = [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "no", "labels": {"pgleash": "inject"}}, "spec": {}},
         {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "no", "labels": {"pgleash": "inject"}},
          "spec": {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"}}}]

helm = shutil.which("helm", path=f"{ROOT / 'target/deploy-check/bin'}:{os.environ['PATH']}")


def main() -> int:
    if not helm:
        print("no helm here: the charts are not checked")
        return 0
    faults = [*check_versions(), *check_lint(), *check_defaults(), *check_example(), *check_values(), *check_refusals(), *check_package()]
    for fault in faults:
        print(f"deploy/helm: {fault}")
    print(f"2 charts, {len(faults)} faults")
    return 1 if faults else 0


def run(*command):
    return subprocess.run([helm, *map(str, command)], text=True, capture_output=True, check=False)


def render(chart, *more):
    done = run("template", "shop", chart, "--namespace", "shop", *more)
    if done.returncode != 0:
        sys.exit(f"deploy/helm: helm template {chart.name} {' '.join(map(str, more))}: {done.stderr.strip()[-600:]}")
    return load(done.stdout)


def of_kind(objects, kind):
    return [document for document in objects if document["kind"] == kind]


def check_versions():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    wanted = yaml.safe_load((EXAMPLE / "Chart.yaml").read_text())["dependencies"][0]["version"]
    if {chart["version"], chart["appVersion"], wanted} != {version()}:
        yield f"the charts are of {chart['version']}, {chart['appVersion']} and {wanted}, and this repository of {version()}"


def check_lint():
    for chart in (CHART, EXAMPLE):
        done = run("lint", "--strict", chart)
        if done.returncode != 0:
            yield f"helm lint {chart.name}: {(done.stdout + done.stderr).strip()[-600:]}"


def check_defaults():
    """Nothing that needs somebody else's kinds, unless it is asked for."""
    kinds = [document["kind"] for document in render(CHART)]
    if kinds != ["ConfigMap"]:
        yield f"by default there are {kinds}"


def check_example():
    objects = render(EXAMPLE)
    yield from check_schemas(objects)
    yield from check_workloads(objects, 30)
    yield from check_monitoring(objects)
    yield from check_boards(objects)
    policies = of_kind(objects, "NetworkPolicy")
    yield from (fault for policy in policies for fault in check_policy(policy, 9632, [8080]))
    if len(policies) != 1:
        yield f"there are {len(policies)} NetworkPolicies"
    yield from check_configuration(objects)


def check_workloads(objects, drain):
    before = {document["metadata"]["name"]: document for document in load((EXAMPLE / "files/workloads.yaml").read_text())}
    after = {document["metadata"]["name"]: document for document in objects if document["kind"] in KINDS}
    if set(before) != set(after) or {document["kind"] for document in after.values()} != KINDS:
        yield f"the workloads are {sorted(after)}"
        return
    configs = {document["metadata"]["name"] for document in of_kind(objects, "ConfigMap")}
    for name, workload in after.items():
        if before[name]["metadata"]["labels"]["pgleash"] != "inject":
            if workload != before[name]:
                yield f"{name} has no label and is changed"
            continue
        yield from (f"{workload['kind']} {name}: {fault}" for fault in check_injected(before[name], workload, drain))
        if template_of(workload)["spec"]["volumes"][-1]["configMap"]["name"] not in configs:
            yield f"{name}: its ConfigMap is not there"
    yield from grace.check(objects)


def check_monitoring(objects):
    monitors, rules = of_kind(objects, "PodMonitor"), of_kind(objects, "PrometheusRule")
    if len(monitors) != 1 or len(rules) != 1:
        yield f"there are {len(monitors)} PodMonitors and {len(rules)} PrometheusRules"
        return
    for document in (monitors[0], rules[0]):
        if document["metadata"]["labels"].get("release") != "prometheus":
            yield f"the {document['kind']} does not have the label that is set"
    written = {group["name"]: group for path in (ROOT / "dashboards/prometheus/rules").glob("*.yml") for group in load(path.read_text())[0]["groups"]}
    found = json.loads(json.dumps(rules[0]["spec"]["groups"]))
    for rule in (rule for group in found for rule in group["rules"] if "alert" in rule):
        address = rule["annotations"]["runbook_url"]
        if not address.startswith(f"{RUNBOOKS}/") or not (ROOT / "docs/runbooks" / address.rpartition("/")[2]).is_file():
            yield f"{rule['alert']}: {address} leads to no runbook"
        rule["annotations"]["runbook_url"] = address.replace(RUNBOOKS, "docs/runbooks")
    if {group["name"]: group for group in found} != written:
        yield "the PrometheusRule does not have the rules of dashboards/prometheus/rules"


def check_boards(objects):
    boards = {f"pgleash-{path.name}": path for path in (ROOT / "dashboards").glob("*.json") if "panels" in json.loads(path.read_text())}
    found = {name: text for document in of_kind(objects, "ConfigMap") if document["metadata"]["labels"].get("grafana_dashboard") == "1"
             for name, text in document["data"].items()}
    if set(found) != set(boards):
        yield f"the boards are {sorted(found)}, and should be {sorted(boards)}"
    yield from (f"{name} is not the board of dashboards" for name in set(found) & set(boards) if found[name] != boards[name].read_text())


def check_configuration(objects):
    """As the container has it: the file of the ConfigMap, and the variables."""
    if not built():
        print("pgleash is not built: its configuration in the ConfigMap is not checked")
        return
    text = next(document["data"]["pgleash.toml"] for document in of_kind(objects, "ConfigMap") if "pgleash.toml" in document["data"])
    sidecar = template_of(of_kind(objects, "Deployment")[0])["spec"]["initContainers"][0]
    given = {variable["name"]: variable["value"] for variable in sidecar["env"] if "value" in variable}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        given |= {"PGLEASH_CONFIG": file.name, "PGLEASH_UPSTREAM_URL": "postgres://app@localhost/app?sslmode=disable"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PGLEASH_")}
        done = subprocess.run([built(), "check", "--print"], env=kept | given, cwd="/", text=True, capture_output=True, check=False)
    if done.returncode != 0:
        yield f"pgleash refuses its configuration: {done.stderr.strip()}"


def check_values():
    """Values that are set are what is rendered."""
    digest = "sha256:" + "0" * 64
    objects = render(EXAMPLE, "--set", f"pgleash.drainTimeoutSeconds=120,pgleash.adminPort=9999,pgleash.image.digest={digest}",
                     "--set", "pgleash.boards.label=board,pgleash.networkPolicy.applicationPorts=null", "--set", "pgleash.config=pool.size = 3")
    templates = [*grace.templates(objects)]
    for template in templates:
        sidecar = template["spec"]["initContainers"][0]
        given = {variable["name"]: variable.get("value") for variable in sidecar["env"]}
        if (sidecar["image"], given["PGLEASH_DRAIN_TIMEOUT"], given["PGLEASH_ADMIN"], sidecar["ports"][0]["containerPort"]) != (
                f"pgleash@{digest}", "120s", "0.0.0.0:9999", 9999):
            yield "image, drainTimeoutSeconds or adminPort are not what is set"
    times = sorted(template["spec"]["terminationGracePeriodSeconds"] for template in templates)
    if times != sorted([125, 135, 155, 155, 155, 245, 725, 725]):
        yield f"with a drainTimeoutSeconds of 120 the times to stop are {times}"
    yield from check_policy(of_kind(objects, "NetworkPolicy")[0], 9999)
    if sum("board" in document["metadata"]["labels"] for document in objects) != 3:
        yield "the label of the boards is not what is set"
    before = [*grace.templates(render(EXAMPLE))][0]["metadata"]["annotations"]
    if templates[0]["metadata"]["annotations"] == before:
        yield "another configuration does not roll the workloads"


def check_refusals():
    for value in REFUSED:
        if run("template", "shop", CHART, "--set", value).returncode == 0:
            yield f"{value} is not refused"
    if run("template", "shop", CHART, "--kube-version", "1.28.0").returncode == 0:
        yield "a Kubernetes without native sidecars is not refused"
    for workload in UNFIT:
        with tempfile.TemporaryDirectory() as scratch:
            chart = Path(scratch) / "example"
            shutil.copytree(EXAMPLE, chart)
            (chart / "files/workloads.yaml").write_text(yaml.safe_dump(workload))
            done = run("template", "shop", chart)
            if done.returncode == 0 or "pgleash.inject" not in done.stderr:
                yield f"a {workload['kind']} {[*workload['spec']]} is not refused: {done.stderr.strip()[-200:]}"


def check_package():
    """The archive of the chart has what the links lead to."""
    with tempfile.TemporaryDirectory() as scratch:
        done = run("package", CHART, "--destination", scratch)
        if done.returncode != 0:
            yield f"helm package: {done.stderr.strip()[-300:]}"
            return
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as tar:
            found = {name: tar.extractfile(name).read() for name in tar.getnames()}
    for path in [*(CHART / "files").rglob("*.json"), *(CHART / "files").rglob("*.yml")]:
        if found.get(f"pgleash/{path.relative_to(CHART)}") != path.read_bytes():
            yield f"the archive does not have {path.name}"


if __name__ == "__main__":
    sys.exit(main())
