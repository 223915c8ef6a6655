"""Converts hostile files in one process, and prints what Python's audit events tell of it (PEP 578).

    python -m tests.hostile.auditor CLASS...     CLASS is a key of ``cases.CLASSES``

A JSON object: how many files there were, and each event beyond `EXPECTED`, with the case that made it. What Python
runs, imports, compiles, maps, connects to, starts or opens is such an event, on any system. It works in the directory
in which it is started.
"""

from __future__ import annotations

import contextlib
import encodings.raw_unicode_escape
import encodings.unicode_escape
import gzip
import io
import json
import locale
import os
import sys
import tempfile

from sdconvert import cli

from .case import Case
from .cases import CLASSES
from .running import OUTPUT
from .test_command_line import GOOD

# Imported by Python itself when they are first wanted, or by the conversion of anything compressed.
_LATE = (encodings.raw_unicode_escape, encodings.unicode_escape, locale, tempfile)
_LARGEST = 60_000  # Bytes of a file: what is larger is a bomb, and says nothing that a small one does not.
EXPECTED = frozenset(
    "builtins.id resource.setrlimit os.listdir os.scandir os.link fcntl.flock array.__new__ sys._getframe".split()
)


class Auditor:
    """Notes events while a conversion runs."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.strange: list[tuple[str, str, str]] = []
        sys.addaudithook(self.hook)  # For good: there is no way to take it off.

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        if self.case is None or event in EXPECTED:
            return
        if event == "open" and str(args[0]).removeprefix("./") in (self.case.file, OUTPUT, "."):
            return
        self.strange.append((self.case.name, event, repr(args)[:200]))

    def convert(self, case: Case, data: bytes) -> None:
        with open(case.file, "wb") as file:
            file.write(data)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            self.case = case
            try:
                cli.main(["to-safetensors", case.file, OUTPUT, *case.args])
            finally:
                self.case = None
        for name in os.listdir():
            os.unlink(name)


def main(classes: list[str]) -> None:
    """Convert every small case of `classes`."""
    auditor, count = Auditor(), 0
    for data in (GOOD, gzip.compress(GOOD), b"no checkpoint"):  # What a conversion imports when it is first wanted.
        auditor.convert(Case("sound", bytes, "either"), data)
    auditor.strange.clear()
    for name in classes:
        for case in CLASSES[name]:
            data = case.build()
            if len(data) <= _LARGEST:
                auditor.convert(case, data)
                count += 1
    print(json.dumps({"files": count, "strange": auditor.strange}))


if __name__ == "__main__":
    main(sys.argv[1:])
