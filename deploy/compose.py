#!/usr/bin/env python3
"""Checks docker-compose.yml, Grafana's provisioning and the image's build context for what the tools' own
checks let pass: floating tags, ports open to the world, missing health checks, a start order that waits for
nothing, mounts of files that are not there. Needs PyYAML."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    faults = []
    for name, service in services.items():
        faults += [f"service {name}: {fault}" for fault in [
            *check_image(service), *check_ports(service), *check_order(service, services), *check_mounts(service, compose),
        ]]
    faults += check_provisioning(services)
    faults += check_alerting(services)
    faults += check_profiles(services)
    faults += check_configuration(services["pgleash"])
    faults += check_context()
    for fault in faults:
        print(f"docker-compose.yml: {fault}")
    print(f"{len(services)} services, {len(faults)} faults")
    return 1 if faults else 0


def check_image(service):
    if "build" in service:
        return
    tag = service.get("image", "").partition(":")[2]
    if not re.search(r"\d+\.\d+", tag):
        yield f"image {service.get('image')} is not pinned to a version"
    if not service.get("healthcheck"):
        yield "has no healthcheck"


def check_ports(service):
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"port {port} is not published on loopback only"
    if service.get("network_mode") and service.get("ports"):
        yield "shares a network namespace and publishes ports, which Docker refuses"


def check_order(service, services):
    shared = str(service.get("network_mode", "")).removeprefix("service:")
    wanted = service.get("depends_on", {})
    if shared and shared not in wanted:
        yield f"shares the network namespace of {shared} and does not wait for it"
    for other, how in wanted.items():
        if other not in services:
            yield f"waits for {other}, which is no service"
        elif how.get("condition") != "service_healthy" or not services[other].get("healthcheck"):
            yield f"waits for {other} to start, not to be healthy"


def check_mounts(service, compose):
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            if not (ROOT / source).exists():
                yield f"mounts {source}, which is not there"
            if not mount.endswith(":ro"):
                yield f"mounts {source} writable"
        elif source not in compose.get("volumes", {}):
            yield f"mounts the volume {source}, which is not declared"


def check_provisioning(services):
    folder = ROOT / "dashboards/grafana/provisioning"
    mounted = [mount.split(":")[1] for mount in services["grafana"]["volumes"]]
    for path in sorted(folder.glob("datasources/*.yml")):
        for source in yaml.safe_load(path.read_text())["datasources"]:
            host = re.match(r"http://([\w-]+):\d+$", source["url"])
            if not host or host.group(1) not in services:
                yield f"{path.name}: {source['url']} does not name a service"
    for path in sorted(folder.glob("dashboards/*.yml")):
        for provider in yaml.safe_load(path.read_text())["providers"]:
            where = provider["options"]["path"]
            for board in sorted((ROOT / "dashboards").glob("*.json")):
                if "panels" not in json.loads(board.read_text()):
                    continue  # not a board
                if f"{where}/{board.name}" not in mounted and where not in mounted:
                    yield f"{board.name} is not mounted below {where}"
    scrape = yaml.safe_load((ROOT / "dashboards/prometheus/prometheus.yml").read_text())["scrape_configs"]
    for target in [target for job in scrape for config in job["static_configs"] for target in config["targets"]]:
        if target.split(":")[0] not in services:
            yield f"prometheus.yml: {target} does not name a service"


def check_alerting(services):
    """Rules are mounted where Prometheus looks for them, Alertmanager is where it sends to, and its receiver where that sends to."""
    prometheus = yaml.safe_load((ROOT / "dashboards/prometheus/prometheus.yml").read_text())
    config = next(mount.split(":")[1] for mount in services["prometheus"]["volumes"] if "prometheus.yml:" in mount)
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in services["prometheus"]["volumes"]}
    for pattern in prometheus.get("rule_files", []) or ["(none)"]:
        folder = mounted.get(os.path.dirname(os.path.join(os.path.dirname(config), pattern)), "")
        if not folder or not list((ROOT / folder).glob(os.path.basename(pattern))):
            yield f"prometheus.yml: the rules {pattern} are not mounted"
    targets = [target for manager in prometheus["alerting"]["alertmanagers"] for config in manager["static_configs"] for target in config["targets"]]
    receivers = yaml.safe_load((ROOT / "dashboards/alertmanager/alertmanager.yml").read_text())["receivers"]
    urls = [hook["url"] for receiver in receivers for hook in receiver.get("webhook_configs", [])]
    for where, addresses in [("prometheus.yml", targets), ("alertmanager.yml", [url.removeprefix("http://").rstrip("/") for url in urls])]:
        if not addresses:
            yield f"{where}: sends to nobody"
        for address in addresses:
            if address.split(":")[0] not in services:
                yield f"{where}: {address} is not a service"
    foreign = [kind for receiver in receivers for kind in receiver if kind not in ("name", "webhook_configs")]
    if foreign:
        yield f"alertmanager.yml: {', '.join(foreign)} would tell somebody outside"


def check_profiles(services):
    """Only the load is optional, and nothing that always runs waits for it."""
    optional = {name for name, service in services.items() if service.get("profiles")}
    if optional != {"app"} or services["app"]["profiles"] != ["load"]:
        yield f"the services in a profile are {sorted(optional)}, and should be the application in 'load'"
    for name, service in services.items():
        if name not in optional and optional & set(service.get("depends_on", {})):
            yield f"{name} waits for a service that is optional"


def check_configuration(service):
    """pgleash itself must accept the environment that it is given."""
    binary = next((path for kind in ("release", "debug") if (path := ROOT / "target" / kind / "pgleash").exists()), None)
    if not binary:
        print("pgleash is not built: its configuration in docker-compose.yml is not checked")
        return
    given = {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for key, value in service["environment"].items()}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGLEASH_")}
    done = subprocess.run([binary, "check", "--print"], env=kept | given, cwd="/", text=True, capture_output=True, check=False)
    if done.returncode != 0:
        yield f"pgleash refuses its configuration: {done.stderr.strip()}"


def check_context():
    """Files that the sources include at compile time, or Cargo.toml names, must be in the build context."""
    kept = {line[1:].strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    wanted = re.findall(r'^(?:path|build|readme) = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    included = [(source.parent / name).resolve() for source in [*(ROOT / "src").rglob("*.rs"), *(ROOT / "crates").rglob("*.rs")]
                for name in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', source.read_text())]
    for name in [*wanted, *(str(path.relative_to(ROOT)) for path in included)]:
        if not kept & {str(place) for place in (Path(name), *Path(name).parents)}:
            yield f"the build needs {name}, which .dockerignore leaves out"


if __name__ == "__main__":
    sys.exit(main())
