"""The command line: exit codes, one line for each failure, one document for machines."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdconvert.cli import command_line

Run = Callable[..., subprocess.CompletedProcess[str]]
SD = {"a.weight": torch.randn(3, 4), "b.bias": torch.randn(3)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("to-safetensors", ...)` in a directory that holds ``m.pt``."""
    torch.save(SD, tmp_path / "m.pt")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "sdconvert", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_the_output_is_beside_the_source_by_default(run: Run, tmp_path: Path) -> None:
    done = run("to-safetensors", "m.pt")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("m.pt -> m.safetensors\n")
    assert (tmp_path / "m.safetensors").is_file()


def test_an_ending_that_names_the_other_format_is_refused(run: Run, tmp_path: Path) -> None:
    for command, name in (("to-pt", "o.safetensors"), ("to-safetensors", "o.pt")):
        done = run(command, "m.pt", name)
        assert (done.returncode, f"{name}: a" in done.stderr, "must not end in" in done.stderr) == (1, True, True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    assert run("to-safetensors", "m.pt", "an-ending-of-no-format").returncode == 0


def test_json_is_one_document_with_all_that_happened(run: Run, tmp_path: Path) -> None:
    done = run("to-safetensors", "m.pt", "--json")
    report = json.loads(done.stdout)
    keys = "source container kind key outputs tensors bytes aliases skipped globals warnings verified seconds"
    assert set(keys.split()) <= report.keys()
    assert report["outputs"] == [{"path": "m.safetensors", "bytes": (tmp_path / "m.safetensors").stat().st_size}]
    assert (report["tensors"], report["bytes"], report["verified"]) == (2, 60, True)
    assert report["globals"]["unknown"] == []


def test_quiet_says_nothing(run: Run) -> None:
    assert run("to-safetensors", "m.pt", "-q").stdout == ""


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    report = json.loads(run("to-safetensors", "m.pt", "--dry-run", "--json").stdout)
    assert (report["outputs"], report["verified"], report["tensors"]) == ([], False, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize(
    "args",
    [
        ("to-safetensors", "nowhere.pt"),
        ("to-safetensors", "m.pt", "no/such/dir/o.safetensors"),
        ("to-safetensors", "m.pt", "m.pt"),
        ("to-safetensors", "m.pt", "none/"),
        ("to-safetensors", "m.pt", "--max-shard-size", "much"),
        ("to-safetensors", "m.pt", "/dev/null"),
        ("to-safetensors", "/dev/zero", "o.safetensors"),
        ("to-safetensors", "m.pt", "--key", "x"),
        ("to-safetensors", "m.pt", "--include", "x*"),
        ("to-safetensors", "m.pt", "--dtype", "int8"),
        ("to-safetensors", "m.pt", "--metadata", "format=np"),
        ("to-pt", "m.pt"),
        ("verify", "m.pt", "nowhere.pt"),
        ("inspect", "nowhere.pt"),
        ("inspect", "m.pt", "--key", "x"),
        ("inspect", "m.pt", "--html", "m.pt", "--overwrite"),
        ("inspect", "m.pt", "--html", "no/such/dir/page.html"),
    ],
)
def test_every_refusal_is_one_line_and_exit_code_1(args: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    done = run(*args)
    assert done.returncode == 1
    assert done.stderr.startswith("sdconvert: error: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize(
    "args", [(), ("nonsense",), ("to-safetensors",), ("to-safetensors", "m.pt", "--rename", "x"), ("verify", "m.pt")]
)
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...], run: Run) -> None:
    assert run(*args).returncode == 2


@pytest.mark.parametrize("other", ["m.pt", "./m.pt", "link.pt", "hard.pt"])
def test_the_source_is_never_the_output(other: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to("m.pt")
    (tmp_path / "hard.pt").hardlink_to(tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()
    done = run("to-pt", "m.pt", other, "--overwrite")
    assert (done.returncode, "is the source itself" in done.stderr) == (1, True)
    assert (tmp_path / "m.pt").read_bytes() == before


def test_an_output_that_exists_is_kept_unless_overwrite_is_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "o.safetensors").write_text("mine")
    assert "--overwrite replaces it" in run("to-safetensors", "m.pt", "o.safetensors").stderr
    assert (tmp_path / "o.safetensors").read_text() == "mine"
    assert run("to-safetensors", "m.pt", "o.safetensors", "--overwrite").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "o.safetensors"]


def test_the_mode_is_what_the_umask_leaves(run: Run, tmp_path: Path, umask: Callable[[int], None]) -> None:
    umask(0o027)
    for flags in ((), ("--overwrite",)):
        run("to-safetensors", "m.pt", "o.safetensors", *flags)
        assert (tmp_path / "o.safetensors").stat().st_mode & 0o777 == 0o640


def test_debug_shows_where_an_error_arose(run: Run) -> None:
    assert "Traceback" in run("to-safetensors", "nowhere.pt", "--debug").stderr


def test_choices_are_data_in_json(run: Run, tmp_path: Path) -> None:
    torch.save({"g": SD, "d": {name: tensor + 1 for name, tensor in SD.items()}}, tmp_path / "gan.pt")
    answer = json.loads(run("to-safetensors", "gan.pt", "--json").stdout)
    assert [one["key"] for one in answer["candidates"]] == ["g", "d"]


def test_verify_says_by_its_exit_code_whether_weights_are_equal(run: Run, tmp_path: Path) -> None:
    run("to-safetensors", "m.pt")
    assert run("verify", "m.pt", "m.safetensors").returncode == 0
    torch.save(SD | {"b.bias": torch.zeros(3)}, tmp_path / "x.pt")
    done = run("verify", "m.pt", "x.pt")
    assert (done.returncode, "b.bias: its values differ" in done.stdout) == (1, True)
    one, other = (run("verify", "--digest", name).stdout.split()[0] for name in ("m.pt", "m.safetensors"))
    assert one == other


def test_inspect_shows_a_summary_and_the_tree(run: Run, tmp_path: Path) -> None:
    done = run("inspect", "m.pt")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "m.pt"
    assert "2, 15 parameters, 60 B" in done.stdout
    assert "a.weight  [3, 4]  float32  12  48 B" in done.stdout
    assert run("inspect", "m.pt", "--tensors").stdout.endswith("float32  [3]     12 B  b.bias\n")
    assert run("inspect", "m.pt", "-q").stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_inspect_gives_all_of_it_as_json(run: Run) -> None:
    document = json.loads(run("inspect", "m.pt", "--json").stdout)
    keys = "source container version kind key candidates aliases dtypes prefixes skipped globals tensors output_bytes"
    assert set(keys.split()) <= document.keys()
    assert [one["name"] for one in document["tensors"]] == ["a.weight", "b.bias"]


def test_inspect_writes_a_page(run: Run, tmp_path: Path) -> None:
    done = run("inspect", "m.pt", "--html", "page.html")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "page.html shows it in a browser")
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert "--overwrite" in run("inspect", "m.pt", "--html", "page.html").stderr
    assert json.loads(run("inspect", "m.pt", "--html", "page.html", "--overwrite", "--json").stdout)["tensors"]


def test_inspect_is_told_how_wide_the_terminal_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert max(map(len, run("inspect", "m.pt").stdout.splitlines())) <= 30


def test_a_cast_is_torchs(run: Run, tmp_path: Path) -> None:
    assert run("to-safetensors", "m.pt", "o.safetensors", "--dtype", "bf16").returncode == 0
    from tests.outputs import contents

    assert torch.equal(contents(tmp_path / "o.safetensors")["a.weight"], SD["a.weight"].bfloat16())


def test_inspect_as_a_check_of_what_a_repository_holds(run: Run, tmp_path: Path) -> None:
    run("to-safetensors", "m.pt")
    clean = run("inspect", "m.safetensors", "--fail-on-pickle", "--fail-on-unknown", "--fail-on-dangerous", "-q")
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "", "")
    pickled = run("inspect", "m.pt", "--fail-on-pickle", "-q")
    assert (pickled.returncode, pickled.stderr) == (1, "sdconvert: m.pt: is a pickle (torch-zip)\n")
    assert run("inspect", "m.pt", "--fail-on-unknown", "--fail-on-dangerous", "-q").returncode == 0
    assert run("inspect", "m.pt", "-q").returncode == 0


def test_inspect_names_what_a_check_found(run: Run, tmp_path: Path) -> None:
    class Hidden:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, ("echo oops",)

    torch.save({**SD, "x": Hidden()}, tmp_path / "bad.pt")
    torch.save({**SD, "args": argparse.Namespace(lr=1)}, tmp_path / "odd.pt")
    bad = run("inspect", "bad.pt", "--fail-on-dangerous", "-q")
    assert (bad.returncode, bad.stderr) == (1, "sdconvert: bad.pt: names posix.system\n")
    assert run("inspect", "odd.pt", "--fail-on-dangerous", "-q").returncode == 0
    odd = run("inspect", "odd.pt", "--fail-on-unknown", "-q")
    assert (odd.returncode, odd.stderr) == (1, "sdconvert: odd.pt: names argparse.Namespace\n")


def test_inspect_looks_at_each_of_several_by_itself(run: Run, tmp_path: Path) -> None:
    run("to-safetensors", "m.pt")
    (tmp_path / "junk.bin").write_bytes(b"junk")
    done = run("inspect", "junk.bin", "m.pt", "m.safetensors", "--json", "--fail-on-pickle")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("sdconvert: error: junk.bin: ")
    assert second == "sdconvert: m.pt: is a pickle (torch-zip)"
    junk, pickled, clean = json.loads(done.stdout)
    assert (junk["kind"], pickled["container"], clean["container"]) == ("UnreadableError", "torch-zip", "safetensors")
    assert run("inspect", "m.pt", "m.safetensors", "-q").returncode == 0
    assert run("inspect", "m.pt", "m.safetensors", "--html", "p.html").returncode == 2


COMMANDS = "to-safetensors to-pt inspect verify push batch".split()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_help_are_right_use(command: str) -> None:
    module = importlib.import_module(f"sdconvert.cli.{command.replace('-', '_')}")
    for example, _ in module.EXAMPLES:
        assert command_line().parse_args(shlex.split(example)).command == command
    assert "exit codes:" in command_line().format_help()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_flags_and_files(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shtab", "--shell", shell, "--prog", "sdconvert", "sdconvert.cli.completion.parser"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(word in done.stdout for word in [*COMMANDS, "max-shard-size", "fail-on-pickle"])
    assert {"bash": "_shtab_compgen_files", "zsh": "_files"}[shell] in done.stdout
