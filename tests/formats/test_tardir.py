"""The members of a tar archive: where they lie, as Python's own writer puts them, and what a pax header changes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

import pytest

from sdconvert.formats.tardir import read_members
from sdconvert.source import MemorySource, read

FILES = {"a.pt": b"a" * 700, f"{'long/' * 40}b.pt": b"b" * 512, "empty": b""}


def archive(files: Mapping[str, bytes], form: int, pax: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), pax or {}
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_is_found_by_its_name(form: int) -> None:
    found = read_members(MemorySource(archive(FILES, form)))
    assert {name: read(source, 0, source.nbytes) for name, source in found.items()} == FILES


def test_the_size_of_a_pax_header_is_the_one_that_counts() -> None:
    """It is written where 12 octal digits are too few; the header's own is then of no use."""
    data = bytearray(archive({"a.pt": b"a" * 700}, tarfile.PAX_FORMAT, {"size": "700"}))
    at = data.rindex(b"a.pt\0")  # The last is the member's own; the pax header has its name, too.
    data[at + 124 : at + 136] = b"00000000000\0"
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    found = read_members(MemorySource(bytes(data)))
    assert read(found["a.pt"], 0, 700) == b"a" * 700
