#!/usr/bin/env python3
"""Checks deploy/kubernetes without a cluster: that kustomize's references lead somewhere, that what it makes is valid by
the API's own schemas (and the operator's), that the sidecar keeps what docs/adopting.md promises, that pgleash accepts its
configuration, and that the PrometheusRule is the rules. Needs PyYAML and kubernetes-validate, and node with
@kubernetes-models/prometheus-operator in target/deploy-check/node_modules.

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

import kubernetes_validate
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VERSIONS = ["1.29", "1.34"]  # the first with native sidecars on by default, and a recent one
OPERATOR = "monitoring.coreos.com/v1"
VALIDATE = """
import { readFileSync } from "node:fs";
import * as models from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
for (const object of JSON.parse(readFileSync(0, "utf8")).objects) {
  try { new models[object.kind](object).validate(); } catch (error) { console.log(`${object.kind}: ${error.message}`); }
}
"""


def main() -> int:
    faults = [*check_references()]
    merged = [*documents(HERE / "example/namespace.yaml"), merge(one(HERE / "example/deployment.yaml"), one(HERE / "sidecar/sidecar.yaml")),
              *documents(HERE / "monitoring/podmonitor.yaml"), *documents(HERE / "monitoring/prometheusrule.yaml")]
    faults += check_objects("merged", merged)
    rendered = kustomize(faults)
    if rendered:
        faults += check_objects("kustomize", rendered)
        pods = [[document["spec"]["template"]["spec"] for document in objects if document["kind"] == "Deployment"] for objects in (merged, rendered)]
        if json.dumps(pods[0], sort_keys=True) != re.sub(r"-[0-9a-z]{10}(?=\")", "", json.dumps(pods[1], sort_keys=True)):
            faults.append("kustomize makes another pod than our own merge")
    faults += check_configuration()
    faults += check_rule()
    for fault in faults:
        print(f"deploy/kubernetes: {fault}")
    print(f"{len(merged)} objects, schemas of Kubernetes {' and '.join(VERSIONS)}, {len(faults)} faults")
    return 1 if faults else 0


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


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


def kustomize(faults):
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if not shutil.which(command[0]):
            continue
        done = subprocess.run([*command, HERE / "example"], text=True, capture_output=True, check=False)
        if done.returncode != 0:
            faults.append(f"{' '.join(command)}: {done.stderr.strip()}")
            return None
        return [document for document in yaml.safe_load_all(done.stdout) if document]
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
    yield from (f"{where}: {fault}" for fault in check_sidecar(deployments[0]))
    yield from (f"{where}: {fault}" for fault in check_monitor(monitors[0], deployments[0]["spec"]["template"]))


def check_schemas(objects):
    core = [document for document in objects if document["apiVersion"] != OPERATOR]
    for document in core:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{document['kind']}, Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
    yield from check_operator([document for document in objects if document["apiVersion"] == OPERATOR])


def check_operator(objects):
    done = subprocess.run(["node", "--input-type=module", "-e", VALIDATE], cwd=ROOT / "target/deploy-check", input=json.dumps({"objects": objects}), text=True, capture_output=True, check=False)
    if done.returncode != 0:
        yield f"the schemas of the operator's objects cannot be used: {done.stderr.strip()[-300:]}"
    yield from done.stdout.splitlines()


def check_sidecar(deployment):
    if deployment["metadata"].get("labels", {}).get("pgleash") != "inject":
        yield "the example is not what the component's patch looks for"
    pod = deployment["spec"]["template"]["spec"]
    sidecar = next(container for container in pod["initContainers"] if container["name"] == "pgleash")
    security = sidecar["securityContext"]
    for what, kept in [
        ("is no native sidecar", sidecar.get("restartPolicy") == "Always"),
        ("may run as root", security["runAsNonRoot"] is True and security["runAsUser"] > 0),
        ("may write to its root", security["readOnlyRootFilesystem"] is True),
        ("may gain privileges", security["allowPrivilegeEscalation"] is False),
        ("keeps capabilities", security["capabilities"] == {"drop": ["ALL"]}),
        ("has no seccomp profile", security["seccompProfile"] == {"type": "RuntimeDefault"}),
        ("requests other memory than 16 MiB", sidecar["resources"]["requests"]["memory"] == "16Mi"),
        ("has another limit of memory than 64 MiB", sidecar["resources"]["limits"]["memory"] == "64Mi"),
        ("is throttled", "cpu" not in sidecar["resources"]["limits"]),
        ("has an image of no version", re.search(r":\d+\.\d+\.\d+$", sidecar["image"])),
        ("is of another version than this repository", sidecar["image"].endswith(":" + version())),
        ("asks for its health otherwise than with its own command",
         sidecar["livenessProbe"]["exec"]["command"] == ["/pgleash", "healthcheck"]
         and sidecar["startupProbe"]["exec"]["command"] == ["/pgleash", "healthcheck", "--ready"]),
        ("is killed while it drains", pod["terminationGracePeriodSeconds"] >= 2 * drain_timeout()),
    ]:
        if not kept:
            yield f"the sidecar {what}"
    mounts = {mount["name"] for mount in sidecar["volumeMounts"]}
    if not mounts <= {volume["name"] for volume in pod["volumes"]}:
        yield "the sidecar mounts a volume that the pod does not have"


def check_monitor(monitor, template):
    wanted = monitor["spec"]["selector"]["matchLabels"]
    if not wanted or not wanted.items() <= template["metadata"]["labels"].items():
        yield "the PodMonitor does not select the pods"
    ports = {port["name"]: port["containerPort"] for container in template["spec"]["initContainers"] for port in container.get("ports", [])}
    admin = int(re.search(r'^admin = ".*:(\d+)"', (HERE / "sidecar/pgleash.toml").read_text(), re.MULTILINE).group(1))
    endpoints = monitor["spec"].get("podMetricsEndpoints", [])
    if not endpoints:
        yield "the PodMonitor scrapes nothing"
    for endpoint in endpoints:
        if ports.get(endpoint["port"]) != admin:
            yield f"the PodMonitor scrapes the port {endpoint['port']}, which is not where admin listens"


def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)


def drain_timeout():
    return int(re.search(r'^drain_timeout = "(\d+)s"', (HERE / "sidecar/pgleash.toml").read_text(), re.MULTILINE).group(1))


# --- what pgleash and Prometheus say ---

def check_configuration():
    binary = next((path for kind in ("release", "debug") if (path := ROOT / "target" / kind / "pgleash").exists()), None)
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
        yield "prometheusrule.yaml is not current"
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
