#!/usr/bin/env python3
"""Checks deploy/kubernetes without a cluster: that kustomize's references lead somewhere, that what it makes is valid by
the API's own schemas (and the operator's), that the sidecar keeps what docs/adopting.md promises, that pgleash accepts its
configuration, and that the PrometheusRule is the rules. Needs PyYAML and kubernetes-validate, and node with
the packages of @kubernetes-models in target/deploy-check/node_modules.

What is checked is the output of `kubectl kustomize` if that is at hand, and always what a small merge of our own makes
of the sidecar and the example.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
from manifests import KINDS, VERSIONS, built, check_injected, check_policy, check_schemas, check_sidecar, grace, load, template_of  # noqa: E402


def main() -> int:
    faults = [*check_references()]
    merged = [*documents(HERE / "example/namespace.yaml"), merge(one(HERE / "example/deployment.yaml"), one(HERE / "sidecar/sidecar.yaml")),
              *documents(HERE / "networkpolicy/networkpolicy.yaml"), *documents(HERE / "monitoring/podmonitor.yaml"), *documents(HERE / "monitoring/prometheusrule.yaml")]
    faults += check_objects("merged", merged)
    rendered = kustomize(HERE / "example", faults)
    if rendered:
        faults += check_objects("kustomize", rendered)
        pods = [[document["spec"]["template"]["spec"] for document in objects if document["kind"] == "Deployment"] for objects in (merged, rendered)]
        if json.dumps(pods[0], sort_keys=True) != re.sub(r"-[0-9a-z]{10}(?=\")", "", json.dumps(pods[1], sort_keys=True)):
            faults.append("kustomize makes another pod than our own merge")
    faults += check_kinds(faults)
    faults += check_boards(faults)
    faults += check_configuration()
    faults += check_rule()
    for fault in faults:
        print(f"deploy/kubernetes: {fault}")
    print(f"{len(merged)} objects, schemas of Kubernetes {' and '.join(VERSIONS)}, {len(faults)} faults")
    return 1 if faults else 0


def documents(path):
    return load(path.read_text())


def one(path):
    return documents(path)[0]


# --- references ---

def check_references():
    """Every file that is named is there, and every file that is there is named."""
    named = set()
    for path in sorted(HERE.rglob("kustomization.yaml")):
        named.add(path)
        content = one(path)
        folder = path.parent
        files = [*content.get("resources", []), *content.get("components", []), *(patch["path"] for patch in content.get("patches", []))]
        files += content.get("configurations", [])
        files += [name.partition("=")[2] or name for generator in content.get("configMapGenerator", []) for name in generator.get("files", [])]
        for name in files:
            target = (folder / name).resolve()
            wanted = target / "kustomization.yaml" if target.is_dir() else target
            if not wanted.is_file():
                yield f"{path.relative_to(HERE)}: {name} is not there"
            named.add(wanted)
        for name in content.get("components", []):
            if (folder / name / "kustomization.yaml").is_file() and one(folder / name / "kustomization.yaml")["kind"] != "Component":
                yield f"{path.relative_to(HERE)}: {name} is not a component"
        for name in content.get("resources", []):
            if (folder / name / "kustomization.yaml").is_file() and one(folder / name / "kustomization.yaml")["kind"] != "Kustomization":
                yield f"{path.relative_to(HERE)}: {name} is no kustomization"
    for path in sorted(HERE.glob("*/*")):
        if path.resolve() not in named:
            yield f"{path.relative_to(HERE)}: no kustomization names it"


def merge(into, patch):
    """A strategic merge, as far as ours goes: maps are merged, lists of named things by name, other lists replaced."""
    result = dict(into)
    for key, value in patch.items():
        if key == "metadata" and "kind" in patch:
            continue  # the patch's own name
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        elif isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
            others = {item["name"]: item for item in result.get(key, [])}
            result[key] = [*(merge(others[item["name"]], item) if item["name"] in others else item for item in value),
                           *(item for name, item in others.items() if name not in {item["name"] for item in value})]
        else:
            result[key] = value
    return result


def kustomize(folder, faults):
    for command in ([str(ROOT / "target/deploy-check/bin/kubectl"), "kustomize"], ["kustomize", "build"], ["kubectl", "kustomize"]):
        if not shutil.which(command[0]):
            continue
        done = subprocess.run([*command, folder], text=True, capture_output=True, check=False)
        if done.returncode != 0:
            faults.append(f"{' '.join(command)}: {done.stderr.strip()}")
            return None
        return load(done.stdout)
    print("neither kustomize nor kubectl here: only our own merge is checked")
    return None


# --- objects ---

def check_objects(where, objects):
    invalid = [*check_schemas(objects)]
    yield from (f"{where}: {fault}" for fault in invalid)
    if invalid:
        return  # what is not what it should be cannot be looked at further
    deployments = [document for document in objects if document["kind"] == "Deployment"]
    monitors = [document for document in objects if document["kind"] == "PodMonitor"]
    if len(deployments) != 1 or len(monitors) != 1:
        yield f"{where}: {len(deployments)} Deployments and {len(monitors)} PodMonitors"
        return
    if deployments[0]["metadata"].get("labels", {}).get("pgleash") != "inject":
        yield f"{where}: the example is not what the component's patch looks for"
    yield from (f"{where}: {fault}" for fault in check_sidecar(deployments[0]["spec"]["template"]))
    yield from (f"{where}: {fault}" for fault in grace.check(deployments))
    yield from (f"{where}: {fault}" for document in objects if document["kind"] == "NetworkPolicy" for fault in check_policy(document, admin_port()))
    yield from (f"{where}: {fault}" for fault in check_monitor(monitors[0], deployments[0]["spec"]["template"]))


def check_kinds(faults):
    """Each kind gets the sidecar and keeps what it has, and `grace` gives it the time to stop that both need."""
    rendered = kustomize(HERE / "kinds", faults)
    if not rendered:
        return
    workloads = {document["metadata"]["name"]: document for document in documents(HERE / "kinds/workloads.yaml")}
    wanted = {name for name, workload in workloads.items() if workload["metadata"]["labels"]["pgleash"] == "inject"}
    if {workloads[name]["kind"] for name in wanted} != KINDS:
        yield "kinds: not each kind is there"
    refused = [*grace.check(rendered)]
    if len(refused) != sum("terminationGracePeriodSeconds" not in pod_of(workloads[name]) or pod_of(workloads[name])["terminationGracePeriodSeconds"] < 35 for name in wanted):
        yield f"kinds: `grace --check` finds {refused}"
    names = {document["metadata"]["name"] for document in rendered if document["kind"] in ("ConfigMap", "Secret")}
    for template in [*grace.templates(rendered)]:
        grace.raise_grace(template, rendered)
        if not names >= {template["spec"]["volumes"][0]["configMap"]["name"], template["spec"]["initContainers"][0]["env"][1]["valueFrom"]["secretKeyRef"]["name"]}:
            yield "kinds: a workload names a ConfigMap or Secret that is not there"
    yield from (f"kinds: {fault}" for fault in [*check_schemas(rendered), *grace.check(rendered)])
    for document in rendered:
        before = workloads.get(document["metadata"]["name"])
        if before and before["metadata"]["name"] in wanted:
            yield from (f"kinds: {document['kind']} {document['metadata']['name']}: {fault}" for fault in check_injected(before, document))
        elif before and pod_of(before) != pod_of(document):
            yield f"kinds: {document['metadata']['name']} has no label and is changed"


def pod_of(workload):
    return template_of(workload)["spec"]


def check_boards(faults):
    """Each board is a ConfigMap that Grafana's sidecar finds."""
    rendered = kustomize(ROOT / "dashboards", faults)
    if not rendered:
        return
    yield from check_schemas(rendered)
    boards = {path.name for path in (ROOT / "dashboards").glob("*.json") if "panels" in json.loads(path.read_text())}
    found = {name for document in rendered if document["metadata"]["labels"].get("grafana_dashboard") == "1" for name in document["data"]}
    if found != boards:
        yield f"dashboards: the ConfigMaps have {sorted(found)}, and should have {sorted(boards)}"


def check_monitor(monitor, template):
    wanted = monitor["spec"]["selector"]["matchLabels"]
    if not wanted or not wanted.items() <= template["metadata"]["labels"].items():
        yield "the PodMonitor does not select the pods"
    ports = {port["name"]: port["containerPort"] for container in template["spec"]["initContainers"] for port in container.get("ports", [])}
    endpoints = monitor["spec"].get("podMetricsEndpoints", [])
    if not endpoints:
        yield "the PodMonitor scrapes nothing"
    for endpoint in endpoints:
        if ports.get(endpoint["port"]) != admin_port():
            yield f"the PodMonitor scrapes the port {endpoint['port']}, which is not where admin listens"


def admin_port():
    return int(re.search(r'^admin = ".*:(\d+)"', (HERE / "sidecar/pgleash.toml").read_text(), re.MULTILINE).group(1))


# --- what pgleash and Prometheus say ---

def check_configuration():
    binary = built()
    if not binary:
        print("pgleash is not built: its configuration in the ConfigMap is not checked")
        return
    url = one(HERE / "example/kustomization.yaml")["secretGenerator"][0]["literals"][0].partition("=")[2]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGLEASH_")}
    given = {"PGLEASH_CONFIG": str(HERE / "sidecar/pgleash.toml"), "PGLEASH_UPSTREAM_URL": url}
    done = subprocess.run([binary, "check", "--print"], env=kept | given, cwd="/", text=True, capture_output=True, check=False)
    if done.returncode != 0:
        yield f"pgleash refuses its configuration: {done.stderr.strip()}"


def check_rule():
    if subprocess.run([HERE / "generate", "--check"], check=False).returncode != 0:
        yield "a file that generate writes is not current"
    spec = one(HERE / "monitoring/prometheusrule.yaml")["spec"]
    written = {group["name"]: group for path in (ROOT / "dashboards/prometheus/rules").glob("*.yml") for group in one(path)["groups"]}
    if {group["name"]: group for group in spec["groups"]} != written:
        yield "the PrometheusRule does not have the rules of dashboards/prometheus/rules"
    if shutil.which("promtool"):
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            yaml.safe_dump(spec, file)
            file.flush()
            done = subprocess.run(["promtool", "check", "rules", file.name], text=True, capture_output=True, check=False)
            if done.returncode != 0:
                yield f"promtool refuses the PrometheusRule: {done.stdout}{done.stderr}"


if __name__ == "__main__":
    sys.exit(main())
