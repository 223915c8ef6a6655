"""Class 10 again: hostile words on the command line, and standard streams that are closed, full or gone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ..test_faults import OUTPUT, ROOT
from .case import SECONDS
from .pickling import dict_of, tensor
from .zips import FLOATS, torch_zip

GOOD = torch_zip(dict_of(("w", tensor())))
REPEATED = torch_zip(dict_of(("w", tensor((10**12,), (0,)))))
ESCAPE = "\x1b[2J\x07\n\u202e"
NOT_UTF8 = os.fsdecode(b"\xff\xfe")


def _processor_seconds() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))


def run(directory: Path, *args: str, shell: str = "") -> subprocess.CompletedProcess[bytes]:
    """The command line with `args`, its streams as `shell` redirects them."""
    command = [sys.executable, "-m", "sdconvert", *args]
    if shell:
        command = ["/bin/sh", "-c", f'"$@" {shell}', "sh", *command]
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=_processor_seconds,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a sound checkpoint in it."""
    (tmp_path / "model.pt").write_bytes(GOOD)
    return tmp_path


@pytest.mark.parametrize(
    "args",
    [
        ["--key", ESCAPE],
        ["--key", NOT_UTF8],
        ["--key", "." * 5000],
        ["--rename", f"w={NOT_UTF8}"],
        ["--rename", f"{ESCAPE}=w"],
        ["--rename", ESCAPE],
        ["--rename", "w=__metadata__"],
        ["--rename", "w=" + "x" * 100_000],
        ["--metadata", f"a={NOT_UTF8}"],
        ["--metadata", "format=x"],
        ["--metadata", "="],
        ["--include", ESCAPE],
        ["--include", "["],
        ["--include", "*a" * 2000 + "b"],
        ["--exclude", "*"],
        ["--strip-prefix", ESCAPE],
        ["--dtype", ESCAPE],
        ["--dtype", "__class__"],
        ["--extras", "."],
        ["--extras", f"no/{ESCAPE}"],
        ["--extras", "model.pt"],
        ["--threads", "9" * 5000],
        ["--threads", "\u00b2"],
        ["--threads", "-1"],
        ["--max-expansion", "0"],
        [ESCAPE, ESCAPE],
        [f"--{ESCAPE}"],
        ["model.pt"],
    ],
    ids=lambda args: ascii("-".join(args))[:40],
)
def test_words_that_are_refused(args: list[str], place: Path) -> None:
    done = run(place, "to-safetensors", "model.pt", *args)
    said = done.stderr.decode()
    assert done.returncode in (1, 2), said
    assert "Traceback" not in said
    assert all(c.isprintable() or c == "\n" for c in said)
    last = said.splitlines()[-1]
    assert last.startswith("sdconvert")
    assert "error: " in last
    assert [path.name for path in place.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", [ESCAPE, NOT_UTF8, "-", "--x"], ids=["escape", "not-utf8", "dash", "flag"])
def test_names_of_files_that_are_taken_as_they_are(name: str, place: Path) -> None:
    (place / "model.pt").rename(place / f"{name}.pt")
    for args in (["to-safetensors"], ["to-pt"], ["to-safetensors", "--json"]):
        output = f"{name}.{len(args)}.{args[0][3:]}"
        done = run(place, *args, "--", f"{name}.pt", output)
        assert done.returncode == 0, done.stderr
        assert (place / output).stat().st_size > 16
        assert all(c.isprintable() or c == "\n" for c in done.stdout.decode())
    done = run(place, "verify", "--", f"{name}.pt", output)
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(c.isprintable() or c == "\n" for c in done.stdout.decode())


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        (">&- 2>&- <&-", 0),
        (">/dev/full", 1),
        (">/dev/full 2>&1", 1),
        ("| true", None),
        ("2>&1 | true", None),
    ],
)
@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
def test_streams_that_take_nothing(streams: str, code: int | None, json: bool, place: Path) -> None:
    """The output is written whole all the same, and into no stream; at most one line tells of it."""
    done = run(place, "to-safetensors", "model.pt", OUTPUT, *(["--json"] if json else []), shell=streams)
    assert code is None or done.returncode == code
    assert b"Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 1
    run(place, "to-safetensors", "model.pt", "sound.safetensors")
    assert (place / OUTPUT).read_bytes() == (place / "sound.safetensors").read_bytes()


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">/dev/full", "2>&1 | true"])
def test_streams_that_take_no_error(streams: str, place: Path) -> None:
    done = run(place, "to-safetensors", "missing.pt", "--json", shell=streams)
    assert done.returncode == (0 if "|" in streams else 1)
    assert b"Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["verify", "--digest", "repeated.pt"],
        ["verify", "repeated.pt", "repeated.pt"],
        ["to-pt", "repeated.pt", "out.pt"],
        ["to-safetensors", "repeated.pt", OUTPUT, "--dry-run"],
    ],
    ids=lambda args: "-".join(args[:2]),
)
def test_no_command_reads_terabytes_that_are_views_of_a_few_bytes(args: list[str], place: Path) -> None:
    (place / "repeated.pt").write_bytes(REPEATED)
    done = run(place, *args)
    assert done.returncode == 1
    assert b"--max-expansion" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_flag_that_a_refusal_names_is_taken(place: Path) -> None:
    """Beyond what is always allowed, by 16 MiB."""
    (place / "repeated.pt").write_bytes(torch_zip(dict_of(("w", tensor((68, 1 << 20), (0, 0))))))
    assert run(place, "verify", "--digest", "repeated.pt").returncode == 1
    done = run(place, "verify", "--digest", "repeated.pt", "--max-expansion", "20000000")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "args", [["verify", "--digest", "bad.pt"], ["verify", "bad.pt", "bad.pt"], ["to-pt", "bad.pt", "out.pt"]]
)
def test_no_command_takes_bytes_that_are_not_those_of_the_checksum(args: list[str], place: Path) -> None:
    bad = bytearray(GOOD)
    bad[bad.index(FLOATS)] ^= 1
    (place / "bad.pt").write_bytes(bad)
    done = run(place, *args)
    assert done.returncode == 1
    assert b"record archive/data/0: checksum" in done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["bad.pt", "model.pt"]


def test_threads_beyond_reason(place: Path) -> None:
    done = run(place, "to-safetensors", "model.pt", OUTPUT, "--threads", "1000000")
    assert (done.returncode, done.stderr) == (0, b"")
