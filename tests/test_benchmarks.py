"""The comparison with peers: docs say what it printed, its verdicts are right, and it measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.measure import FailedError, environment, measured, need, remove, size, synced
from benchmarks.peers import outcome, render
from benchmarks.peers.cases import described
from benchmarks.peers.contest import Contest, ratio
from benchmarks.peers.ways import Way
from tests.docs_files import ROOT

MB = 1 << 20


@pytest.mark.parametrize(("path", "part"), render.parts(), ids=lambda value: getattr(value, "stem", ""))
def test_the_pages_have_what_the_results_render_to(path: Path, part: str) -> None:
    """Nothing where there are no results. `python -m benchmarks.peers --render` writes it anew."""
    assert path.read_text().count(render.BEGIN) == path.read_text().count(render.END) == 1
    assert render.between(path.read_text()) == part.strip()
    assert render.PLOT.exists() == render.RESULTS.exists()


class TestMeasured:
    def test_memory_and_reading_are_those_of_the_process(self, tmp_path: Path) -> None:
        """Measured from a small process: of this one, which has torch, a child would inherit the peak."""
        (tmp_path / "file").write_bytes(bytes(8 * MB))
        inner = f"held = b'x' * {64 * MB}; open({str(tmp_path / 'file')!r}, 'rb', 0).read()"
        code = f"""
import json, sys
from benchmarks.measure import measured
taken = [measured([sys.executable, "-c", text]) for text in ("", {inner!r})]
print(json.dumps([[one.peak, one.read] for one in taken]))
"""
        done = subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)
        little, much = json.loads(done.stdout)
        assert 64 * MB <= much[0] - little[0] < 90 * MB
        assert 8 * MB <= much[1] - little[1] < 9 * MB

    def test_what_a_shell_waits_for_counts(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(bytes(8 * MB))
        assert measured(f"sleep 0.2; cat {tmp_path}/file; true").seconds > 0.2
        assert measured(f"cat {tmp_path}/file; true").read > 8 * MB

    def test_a_failure_says_the_error_and_not_the_way_to_it(self) -> None:
        with pytest.raises(FailedError, match=r"^ValueError: it is not good$"):
            measured([sys.executable, "-c", "raise ValueError('it is \\x1b[1mnot\\x1b[0m\\n good')"])
        with pytest.raises(FailedError, match="exit code 3"):
            measured("exit 3")
        with pytest.raises(FailedError, match="signal 9"):
            measured("kill -9 $$")

    def test_what_takes_too_long_is_ended(self) -> None:
        with pytest.raises(FailedError, match="more than 1 s"):
            measured(["sleep", "60"], timeout=1)

    def test_room_is_asked_for_before(self, tmp_path: Path) -> None:
        need(tmp_path, 1)
        with pytest.raises(SystemExit, match="GB free"):
            need(tmp_path, 1e18)


class TestAVerdict:
    """On outputs as the libraries write them."""

    weight = torch.arange(4096.0).view(64, 64)
    state = {"a": weight, "b": weight + 1}  # noqa: RUF012 - read only

    def of(self, folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
        save_file(tensors, folder / "out.safetensors", metadata)
        return outcome.verdict(folder / "out.safetensors", described(self.state))

    def test_right(self, tmp_path: Path) -> None:
        assert self.of(tmp_path, self.state) == outcome.RIGHT

    def test_wrong_bytes(self, tmp_path: Path) -> None:
        assert self.of(tmp_path, {**self.state, "b": self.weight + 2}) == "wrong bytes"
        assert self.of(tmp_path, {**self.state, "b": (self.weight + 1).t().contiguous()}) == "wrong bytes"
        assert self.of(tmp_path, {**self.state, "b": (self.weight + 1).view(-1)}) == "wrong bytes"

    def test_another_dtype(self, tmp_path: Path) -> None:
        assert self.of(tmp_path, {**self.state, "b": (self.weight + 1).double()}) == "another dtype"

    def test_names(self, tmp_path: Path) -> None:
        assert self.of(tmp_path, {"a": self.weight}) == "1 of 2 names missing"
        assert self.of(tmp_path, {f"model.{name}": value for name, value in self.state.items()}) == "other names"
        assert self.of(tmp_path, {**self.state, "grid": torch.ones(3)}) == "1 tensor too many"

    def test_size(self, tmp_path: Path) -> None:
        moments = {f"exp.{number}": self.weight + 2 + number for number in range(4)}
        assert self.of(tmp_path, {**self.state, **moments}) == "3.0 times too large"

    def test_ties(self, tmp_path: Path) -> None:
        tied = {"a": self.weight, "b": self.weight}
        save_file({"a": self.weight}, tmp_path / "out.safetensors", {"b": "a"})
        assert outcome.verdict(tmp_path / "out.safetensors", described(tied)) == outcome.RIGHT
        save_file({"a": self.weight, "b": self.weight.clone()}, tmp_path / "out.safetensors")
        assert outcome.verdict(tmp_path / "out.safetensors", described(tied)) == "2.0 times too large"
        save_file({"a": self.weight}, tmp_path / "out.safetensors")
        assert outcome.verdict(tmp_path / "out.safetensors", described(tied)) == "1 of 2 names missing"

    def test_a_pickle_counts_by_the_names_of_the_state_dict_in_it(self, tmp_path: Path) -> None:
        torch.save({"model": self.state}, tmp_path / "out.pt")
        assert outcome.verdict(tmp_path / "out.pt", described(self.state)) == outcome.RIGHT

    def test_a_refusal(self) -> None:
        assert outcome.refused("ModuleNotFoundError: No module named 'models'") == "needs the class"
        assert outcome.refused("AttributeError: Can't get attribute 'Net' on <module '__main__'>") == "needs the class"
        assert outcome.refused("RuntimeError: Some tensors share memory") == "refuses"


class TestAContest:
    def contest(self, **options: Any) -> Contest:
        return Contest(sys.executable, frozenset(["nowhere"]), memory=4 << 30, **options)

    def test_every_way_runs_in_every_round_and_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "source.pt").write_bytes(bytes(MB))
        ways = [
            Way("sdconvert", "", ".a", lambda python, source, out: ["cp", str(source), str(out)]),
            Way("slow", "", "/", lambda python, source, out: f"mkdir {out}; cp {source} {out}/; sleep 0.3"),
            Way("broken", "", ".b", lambda python, source, out: f"touch {out}; echo 'OSError: no' >&2; exit 1"),
            Way("absent", "nowhere", ".c", lambda python, source, out: "exit 1"),
        ]
        row = self.contest().held("1 MB", tmp_path / "source.pt", ways, 2)
        found = row["ways"]
        assert (row["bytes"], len(found["sdconvert"]["seconds"]), found["sdconvert"]["output"]) == (MB, 2, MB)
        assert found["sdconvert"]["read"] > MB
        assert min(found["slow"]["seconds"]) > 0.3
        assert (found["broken"]["seconds"], found["broken"]["not_run"]) == ([], "OSError: no")
        assert found["absent"]["not_run"] == "not installed"
        assert [path.name for path in tmp_path.iterdir()] == ["source.pt"]

    def test_a_way_that_needs_more_memory_than_there_is_does_not_run(self, tmp_path: Path) -> None:
        (tmp_path / "source.pt").write_bytes(bytes(MB))
        contest = self.contest(grows={"hungry": 6000.0})
        hungry = Way("hungry", "", ".a", lambda python, source, out: "exit 1")
        row = contest.held("1 MB", tmp_path / "source.pt", [hungry], 1)
        assert row["ways"]["hungry"]["not_run"] == "needs 6 GB of memory"

    def test_ratios_are_of_pairs(self) -> None:
        assert ratio([1.0, 10.0, 1.0], [2.0, 20.0, 3.0]) == 2.0
        assert ratio([1.0, 10.0], [3.0]) == 3.0

    def test_files_and_directories_are_measured_synced_and_removed(self, tmp_path: Path) -> None:
        (tmp_path / "out" / "deep").mkdir(parents=True)
        (tmp_path / "out" / "deep" / "file").write_bytes(bytes(10))
        assert size(tmp_path / "out") == size(tmp_path / "out" / "deep" / "file") == 10
        assert synced(tmp_path / "out") >= 0
        remove(tmp_path / "out")
        remove(tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """All of its parts but the verdicts, small, with the peers that this environment has."""
    command = [sys.executable, "-m", "benchmarks.peers", "--tiny", "--peers-python", sys.executable]
    parts = ["--only", "files", "counts", "--dir", str(tmp_path), "--results", str(tmp_path / "results.json")]
    done = subprocess.run([*command, *parts], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert done.stdout == render.page(results) + "\n"
    assert "A quick run" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    for contest in (*results["files"], *results["counts"]):
        ran = {name for name, runs in contest["ways"].items() if runs["seconds"]}
        assert {"sdconvert", "cp", "torch.load, safetensors save_file", "torch.load, huggingface_hub"} <= ran
        assert all(contest["ways"][name]["output"] > 0 for name in ran)
