"""What both kinds of manifests are held to, those of kustomize and those of Helm: the schemas of Kubernetes, of the
Prometheus operator and of Argo Rollouts, and what docs/adopting.md promises of the sidecar. Needs PyYAML and
kubernetes-validate, and node with the packages of @kubernetes-models that deploy/check installs."""

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ["1.29", "1.34"]  # the first with native sidecars on by default, and a recent one
OPERATOR = "monitoring.coreos.com/v1"
# Of custom resources: whose schema has them.
MODELS = {OPERATOR: "@kubernetes-models/prometheus-operator", "argoproj.io/v1alpha1": "@kubernetes-models/argo-rollouts"}
KINDS = {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Rollout"}
VALIDATE = """
import { readFileSync } from "node:fs";
const { objects, models } = JSON.parse(readFileSync(0, "utf8"));
for (const object of objects) {
  try {
    const known = await import(`${models[object.apiVersion]}/${object.apiVersion}`);
    new known[object.kind](object).validate();
  } catch (error) { console.log(`${object.kind} ${object.metadata.name}: ${error.message}`); }
}
"""


def load(text):
    return [document for document in yaml.safe_load_all(text) if document]


def script(path):
    """A script of ours as a module, also without .py."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader(path.name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.name, loader))
    loader.exec_module(module)
    return module


grace = script(ROOT / "deploy/kubernetes/grace")


def check_schemas(objects):
    for document in (document for document in objects if document["apiVersion"] not in MODELS):
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{document['kind']} {document['metadata']['name']}, Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
    yield from check_models([document for document in objects if document["apiVersion"] in MODELS])


def check_models(objects):
    done = subprocess.run(["node", "--input-type=module", "-e", VALIDATE], cwd=ROOT / "target/deploy-check",
                          input=json.dumps({"objects": objects, "models": MODELS}), text=True, capture_output=True, check=False)
    if done.returncode != 0:
        yield f"the schemas of custom resources cannot be used: {done.stderr.strip()[-300:]}"
    yield from done.stdout.splitlines()


def template_of(workload):
    holder = workload["spec"]["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else workload["spec"]
    return holder["template"]


def check_sidecar(template):
    pod = template["spec"]
    sidecar = next((container for container in pod.get("initContainers", []) if container["name"] == "pgleash"), None)
    if not sidecar:
        yield "there is no sidecar"
        return
    security = sidecar["securityContext"]
    for what, kept in [
        ("is no native sidecar", sidecar.get("restartPolicy") == "Always"),
        ("is not before the application's own init containers", pod["initContainers"][0] is sidecar),
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
        ("is not what the PodMonitor looks for", template["metadata"]["labels"].get("pgleash") == "sidecar"),
    ]:
        if not kept:
            yield f"the sidecar {what}"
    mounts = {mount["name"] for mount in sidecar["volumeMounts"]}
    if not mounts <= {volume["name"] for volume in pod["volumes"]}:
        yield "the sidecar mounts a volume that the pod does not have"


def check_injected(before, after, drain=30):
    """What the application had is still there, as it was, and nothing but the sidecar has been added."""
    old, new = template_of(before)["spec"], template_of(after)["spec"]
    yield from check_sidecar(template_of(after))
    for name, ours in [("initContainers", "pgleash"), ("volumes", "pgleash")]:
        if [item for item in new.get(name, []) if item["name"] != ours] != (old.get(name) or []):
            yield f"{name} are not what the application has"
    for name in sorted(set(old) - {"initContainers", "volumes", "terminationGracePeriodSeconds"}):
        if new.get(name) != old[name]:
            yield f"{name} is not what the application has"
    wanted = old.get("terminationGracePeriodSeconds", grace.DEFAULT) + drain + grace.MARGIN
    if new.get("terminationGracePeriodSeconds") != wanted:
        yield f"terminationGracePeriodSeconds is {new.get('terminationGracePeriodSeconds')}, and should be {wanted}"


def check_policy(policy, admin, ports=()):
    """That of admin is open to somebody in particular, and the given ports to all; nothing else is."""
    if policy["spec"]["policyTypes"] != ["Ingress"] or policy["spec"]["podSelector"] != {"matchLabels": {"pgleash": "sidecar"}}:
        yield "the NetworkPolicy is not about what comes in to pods with the sidecar"
    opened = {}
    for rule in policy["spec"]["ingress"]:
        peers = rule.get("from", [])
        for port in rule.get("ports") or [{}]:
            particular = bool(peers) and all(peer.get("podSelector") and peer.get("namespaceSelector") for peer in peers)
            opened[port.get("port"), port.get("endPort")] = particular
    if opened != {(admin, None): True} | {(port, None): False for port in ports}:
        yield f"the NetworkPolicy opens {opened}"


def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)


def built():
    return next((path for kind in ("release", "debug") if (path := ROOT / "target" / kind / "pgleash").exists()), None)
