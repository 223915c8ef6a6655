"""The peers' environment, and what a result has to name: machine, versions, tree."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, environment

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PACKAGES = ("torch", "safetensors", "huggingface_hub", "accelerate", "deepspeed", "pt-safe-loader", "matplotlib")
IMPORTS = {"pt-safe-loader": "pt_loader"}
_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"python": platform.python_version(), **found}))
"""


def made(folder: Path) -> str:
    """The interpreter of the environment in `folder`, which is made if it is not there; takes minutes, and 1.5 GB."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    # DeepSpeed builds from source and looks at torch while it does: torch has to be there first.
    torch = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch==")]
    install = [str(python), "-m", "pip", "install", "-q"]
    env = {**os.environ, "DS_BUILD_OPS": "0"}
    subprocess.run([*install, *torch, "setuptools", "wheel"], check=True, env=env)
    subprocess.run([*install, "--no-build-isolation", "-r", str(REQUIREMENTS)], check=True, env=env)
    return str(python)


def versions(python: str) -> dict[str, str]:
    """Of that interpreter and of the peers that it has."""
    done = subprocess.run([python, "-c", _VERSIONS, *PACKAGES], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def missing(found: dict[str, str]) -> frozenset[str]:
    """The modules of peers that are not installed."""
    return frozenset(IMPORTS.get(name, name) for name in PACKAGES if name not in found)


def ours() -> dict[str, str]:
    """Version and commit of this tree, with a plus where it has changes, and the Python that runs it."""
    version = subprocess.run(
        [sys.executable, "-m", "sdconvert", "--version"], check=True, capture_output=True, text=True, env=environment()
    )
    tree = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*tree, "status", "--porcelain", "sdconvert"], capture_output=True, text=True).stdout
    return {
        "sdconvert": version.stdout.split()[-1],
        "commit": commit + ("+" if changed else ""),
        "python": platform.python_version(),
    }


def memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(folder: Path) -> dict[str, Any]:
    """Processor, cores, memory, kernel, and the file system of `folder`."""
    cpu = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    kind = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", str(folder)], capture_output=True, text=True)
    return {
        "cpu": cpu or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "kernel": platform.release().partition("-")[0],
        "filesystem": kind.stdout.strip(),
    }
