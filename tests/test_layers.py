"""The house: imports go one way, files stay small, and importing the package costs little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdconvert

PACKAGE = Path(sdconvert.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Each may import what stands before it, and its own row.
ROWS = [
    "starting errors limits dtypes crc32 shardnames",
    "source tensor folder",
    "inflated late gather progress notebook strict_json",
    "remote.tokens remote.proof remote.blocks remote.http remote.hub remote.hub_folder remote.files remote",
    "pickles.nodes pickles.window pickles.stack pickles.opcodes pickles.machine",
    "checkpoint",
    "encodings recipes",
    "pickles pickles.resolver pickles.arrays pickles.encoded pickles.quantized pickles.subclasses "
    "pickles.rebuild pickles.known pickles.modules pickles.compose",
    "formats.parallel formats.weight_files formats.boxes",
    "formats.zipfields formats.zipdir formats.tardir formats.storages formats.protocol formats.torch_archive",
    "formats.json_record formats.archive formats.torchscript formats.torchscript_legacy formats.torch_export",
    "formats.torch_package formats.dcp_metadata formats.zero",
    "formats.torch_zip formats.torch_legacy formats.torch_tar formats.bare_pickle formats.gzipped formats.safetensors",
    "formats.dcp formats.dcp_safetensors formats.deepspeed formats.sharded formats.weights_dir",
    "formats.foreign formats",
    "neighbours",
    "names tree",
    "search fsdp",
    "extract extras computed sparse dense",
    "plan",
    "threads stream atomic delivery",
    "writers.safetensors writers.torch_zip writers report",
    "output",
    "chain sharding opening",
    "conversion convert",
    "verify",
    "outline html inspection",  # An inspection and its views.
    "inspect",
    "hub.publication hub.client hub.provenance hub.permission hub.naming hub.evidence hub.proposal hub.card hub.commit",
    "hub.review hub.publish hub",
    "batch.jobs batch.task batch.manifest batch.sources batch.executors batch.summary batch.seen batch.driver batch",
    "load.match load.result load.mapping load.memory load.reading load.pause load.skeleton load.decode load.packed",
    "load.transfer load.place load.offer load.slots load.trial",
    "load.visit load.targets load.filling load.settle",
    "load.job load.into load.tensors load",
    "live_encoded",
    "live save",
    "plugs plugs.torch_distributed plugs.lightning",  # Each imports the library that it is for.
    "",
    "cli cli.completion cli.conversion cli.to_safetensors cli.to_pt cli.verify cli.inspect cli.push cli.batch __main__",
]
RANK = {name: number for number, row in enumerate(ROWS) for name in (row.split() or [""])}


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, when it is imported or later."""
    found: set[str] = set()
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                found.add(inner if inner in RANK else ".".join(base))
    return found


def test_every_module_has_its_place() -> None:
    assert {module(path) for path in FILES} == RANK.keys()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_one_way(path: Path) -> None:
    upward = {name for name in imported(path) if RANK[name] > RANK[module(path)]}
    if module(path) in ("errors", "cli", "hub.evidence"):  # For a type only; for the version only.
        upward -= {"checkpoint", ""}
    assert upward == set()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("name", ["sdconvert", "sdconvert.cli"])
def test_importing_it_imports_nothing_heavy(name: str) -> None:
    code = f"import sys, {name}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "numpy", "huggingface_hub", "safetensors", "tqdm"} & set(loaded) == set()


def test_the_public_names() -> None:
    assert sorted(sdconvert.__all__) == sorted(
        [
            "Candidate",
            "CandidateFacts",
            "Cast",
            "ChoiceError",
            "DTypeFacts",
            "Difference",
            "Inspection",
            "Limits",
            "LoadResult",
            "Misfit",
            "MismatchError",
            "Names",
            "OpenCheckpoint",
            "Output",
            "OutputError",
            "Publication",
            "Report",
            "Review",
            "SdconvertError",
            "Sent",
            "Skipped",
            "StateDict",
            "TensorFacts",
            "TensorRef",
            "UnreadableError",
            "UnsupportedError",
            "Verification",
            "__version__",
            "convert",
            "digest",
            "inspect",
            "load",
            "load_into",
            "open",
            "push",
            "review",
            "save",
            "skeleton",
            "verify",
        ]
    )
    assert all(hasattr(sdconvert, name) for name in sdconvert.__all__)


def alias_of(node: ast.Import) -> set[str]:
    return {alias.name.partition(".")[0] for alias in node.names}


def test_nothing_in_the_package_can_unpickle() -> None:
    for path in FILES:
        tree = list(ast.walk(ast.parse(path.read_text())))
        names = {node.id for node in tree if isinstance(node, ast.Name)}
        modules = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
        modules |= {f"{node.module}" for node in tree if isinstance(node, ast.ImportFrom) and not node.level}
        taken = {alias.name for node in tree if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert {"pickle", "_pickle", "dill", "cloudpickle"} & modules <= {"pickle"}, path
        assert "pickle" not in modules or (path.name == "live_encoded.py" and "pickle" not in taken), path
        assert {"load", "loads", "Unpickler", "_Unpickler"} & (taken if "pickle" in modules else set()) == set(), path
        assert not any(isinstance(node, ast.Import) and alias_of(node) & {"pickle", "_pickle"} for node in tree), path
        assert {"eval", "exec", "__import__", "compile", "marshal"} & names == set(), path
