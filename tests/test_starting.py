"""An interrupt while the command begins: no traceback of ours, whenever it comes; and other programs are left alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdconvert.starting import is_command

ROOT = Path(__file__).parents[1]
PACKAGE = re.escape(f"{ROOT / 'sdconvert'}{os.sep}")
# What runs before an interrupt is ours: the import of the first module, and that module until it has taken over.
FIRST = rf'{PACKAGE}(__init__\.py", line 3,|starting\.py")'
SCRIPT = "from sdconvert.__main__ import main\nraise SystemExit(main())\n"  # As installers write it.


@pytest.mark.parametrize("way", ["module", "script"])
def test_an_interrupt_at_any_moment_of_the_start(way: str, tmp_path: Path) -> None:
    (tmp_path / "sdconvert").write_text(SCRIPT)
    command = ["-m", "sdconvert"] if way == "module" else [str(tmp_path / "sdconvert")]
    codes = set()
    for number in range(15):
        process = subprocess.Popen(
            [sys.executable, *command, "to-safetensors", "model.pt"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(number * 0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
        # What comes before our first line is Python's: its traceback has no line of the package but the very first.
        ours = re.search(PACKAGE, re.sub(FIRST, "", said))
        assert "Traceback" not in said or not ours, said
        if "Traceback" not in said and "Fatal Python error" not in said:
            codes.add(process.returncode)
    assert codes <= {-signal.SIGINT, 130, 1}, codes  # 1: it was done before, as there is no model.pt.
    assert -signal.SIGINT in codes


def test_other_programs_are_left_alone(tmp_path: Path) -> None:
    code = "import signal, sdconvert; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code, "sdconvert"], check=True)
    (tmp_path / "program.py").write_text(code)
    subprocess.run([sys.executable, str(tmp_path / "program.py"), "-m", "sdconvert"], check=True)


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    code = "import signal, sdconvert; assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    (tmp_path / "sdconvert").write_text(code)
    shell = 'trap "" INT; exec "$@"'
    subprocess.run(["sh", "-c", shell, "sh", sys.executable, str(tmp_path / "sdconvert")], check=True)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ("python -m sdconvert inspect a.pt", True),
        ("python -W error -m sdconvert", True),
        ("/usr/bin/python3 /usr/bin/sdconvert to-pt a", True),
        ("python /usr/bin/hf-sdconvert", True),
        ("python -m pytest sdconvert", False),
        ("python -m sdconvert.batch", False),
        ("python train.py sdconvert", False),
        ("python -m", False),
        ("python", False),
    ],
)
def test_what_is_the_command(argv: str, command: bool) -> None:
    words = argv.split()
    assert is_command(words, "-m" if "-m" in words else words[-1]) is command
    assert not is_command(words, "program.py") or "-m" not in words
