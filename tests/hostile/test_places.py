"""Class 10: what stands in the place of the source and of the output, and a source that changes under way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..test_faults import OLD, OUTPUT, ROOT, converting, source_bytes
from .pickling import dict_of, tensor
from .zips import torch_zip


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the conversion gives when nothing is in its way."""
    directory = tmp_path_factory.mktemp("sound")
    (directory / "source.pt").write_bytes(source_bytes())
    assert converting("source.pt", OUTPUT, cwd=directory).returncode == 0
    return (directory / OUTPUT).read_bytes()


# The source changes while it is converted: `meddle(path)` runs just before its N-th read.
_MEDDLER = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[2])
what, when = sys.argv[3], int(sys.argv[4])
from sdconvert import cli, source, stream
stream.CHUNK = 4096
reads, real = 0, source.FileSource.readinto
def readinto(self, offset, buffer):
    global reads
    reads += 1
    if reads == when:
        size = os.path.getsize("source.pt")
        if what == "truncate":
            os.truncate("source.pt", size // 2)
        elif what == "empty":
            os.truncate("source.pt", 0)
        elif what == "extend":
            open("source.pt", "ab").write(b"more")
        elif what == "rewrite":
            with open("source.pt", "r+b") as file:
                file.write(os.urandom(size))
            os.utime("source.pt", (1, 1))
        elif what == "replace":
            open("other", "wb").write(os.urandom(size))
            os.rename("other", "source.pt")
        elif what == "delete":
            os.unlink("source.pt")
    return real(self, offset, buffer)
source.FileSource.readinto = readinto
code = cli.main(["to-safetensors", "source.pt", "out.safetensors"])
sys.exit(100 if reads < when and code == 0 else code)
"""


@pytest.mark.parametrize("what", ["truncate", "empty", "extend", "rewrite", "replace", "delete"])
def test_the_source_changes_under_way(what: str, tmp_path: Path, sound: bytes) -> None:
    """Refused, or, where it was only removed, the right output: never a wrong one, never a signal."""
    codes = []
    for when in (1, 2, 3, 4, 6, 8, 12, 40):
        work = tmp_path / str(when)
        work.mkdir()
        (work / "source.pt").write_bytes(source_bytes())
        done = subprocess.run(
            [sys.executable, "-c", _MEDDLER, str(ROOT), str(work), what, str(when)],
            capture_output=True,
            text=True,
            check=False,
        )
        codes.append(done.returncode)
        names = {path.name for path in work.iterdir()} - {"source.pt"}
        if done.returncode in (0, 100):
            assert (work / OUTPUT).read_bytes() == sound
            assert names == {OUTPUT}
        else:
            assert done.returncode == 1
            assert len(done.stderr.splitlines()) == 1
            assert "Traceback" not in done.stderr
            assert names == set()
    assert codes[-1] == 100
    assert set(codes[:-1]) <= ({0, 100} if what == "delete" else {1, 100} if what == "replace" else {0, 1, 100})
    assert what == "delete" or 1 in codes


def _link(target: str) -> Callable[[Path], None]:
    return lambda at: (at / OUTPUT).symlink_to(target)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize(
    ("make", "fine"),
    [
        (_link("victim"), True),
        (_link("nowhere"), True),
        (_link(OUTPUT), True),
        (_link("source.pt"), False),
        (lambda at: os.link(at / "source.pt", at / OUTPUT), False),
        (lambda at: [(at / OUTPUT).mkdir(), (at / OUTPUT / f"model.{OUTPUT.split('.')[1]}").mkdir()], False),
        (lambda at: os.mkfifo(at / OUTPUT), False),
        (_link("/dev/full"), False),
        (_link("/dev/null"), False),
        (_link("/dev/stdout"), False),
    ],
    ids=[
        "link",
        "dangling",
        "self-loop",
        "link-to-source",
        "hard-link-to-source",
        "directory",
        "fifo",
        "dev-full",
        "dev-null",
        "dev-stdout",
    ],
)
def test_what_stands_in_the_place_of_the_output(
    make: Callable[[Path], None], fine: bool, overwrite: bool, tmp_path: Path, sound: bytes
) -> None:
    """Without --overwrite nothing is touched; with it a link is replaced, never followed."""
    source = source_bytes()
    (tmp_path / "source.pt").write_bytes(source)
    (tmp_path / "victim").write_bytes(OLD)
    make(tmp_path)
    link = (tmp_path / OUTPUT).is_symlink() or (tmp_path / OUTPUT).is_file()
    before = sorted(path.name for path in tmp_path.iterdir())
    done = converting("source.pt", OUTPUT, *(["--overwrite"] if overwrite else []), cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode in ((0,) if overwrite and fine else (0, 1) if overwrite and link else (1,)), done.stderr
    assert (tmp_path / "source.pt").read_bytes() == source
    assert (tmp_path / "victim").read_bytes() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if done.returncode == 0:
        assert (tmp_path / OUTPUT).read_bytes() == sound
        assert not (tmp_path / OUTPUT).is_symlink()


@pytest.mark.parametrize(
    "source",
    [
        "/dev/zero",
        "/dev/null",
        "fifo",
        "directory",
        "link-loop",
        "missing",
        "",
        ".",
        "\0",
        "a" * 5000,
        "/proc/self/mem",
        "-",
    ],
)
def test_sources_that_are_no_files(source: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link-loop").symlink_to("link-loop")
    before = sorted(path.name for path in tmp_path.iterdir())
    if "\0" in source:
        from sdconvert import SdconvertError, convert

        with pytest.raises(SdconvertError):
            convert(source, tmp_path / OUTPUT)
    else:
        done = converting("--", source, OUTPUT, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["权" * 75, "n" * 243, "e\u0301" * 80], ids=["cjk", "ascii", "combining"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_the_longest_names_that_a_file_may_have(name: str, overwrite: bool, tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "source.pt").write_bytes(source_bytes())
    target = tmp_path / f"{name}.safetensors"
    if overwrite:
        target.write_bytes(OLD)
    done = converting("source.pt", str(target), *(["--overwrite"] if overwrite else []), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert target.read_bytes() == sound


def test_one_name_for_weights_and_extras(tmp_path: Path) -> None:
    (tmp_path / "source.pt").write_bytes(source_bytes())
    done = converting("source.pt", OUTPUT, "--extras", OUTPUT, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pt"]


def test_a_terminal_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "source.pt").write_bytes(torch_zip(dict_of(("重み.é", tensor()))))
    done = subprocess.run(
        [sys.executable, "-m", "sdconvert", "to-safetensors", "source.pt", "重み.safetensors"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
