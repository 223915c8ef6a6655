"""The content-addressed store of Xet, as the client's own Rust code keeps it in a local directory.

The client takes ``local://DIR`` for the address of a store: it chunks, deduplicates and writes there as it
would over the network. The server only reads the shards, to learn which file has which sha256, and asks the
same code to put a file together when a client without Xet wants it by HTTP.

A shard (``.mdb``): a header of 48 bytes, then for each file 48 bytes (hash, flags u32, segments u32) and its
records of 48 bytes: the segments (whose length is a u32 at byte 36), as many of verification if bit 31 of the
flags is set, and the sha256 if bit 30 is. Hashes are four little-endian u64.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .store import Blob

_RECORD = 48
_END = b"\xff" * 32
# Apart from the tests' own process: the store's threads and log files stay out of it.
_LOAD = """
import sys, hf_xet
address, hash, size, path = sys.argv[1:]
group = hf_xet.XetSession().new_file_download_group(endpoint=address, token="local", token_expiry_unix_secs=1 << 40)
with group:
    group.start_download_file(hf_xet.XetFileInfo(hash, int(size)), path)
"""
_SAVE = """
import sys, hf_xet
address, sha256, path = sys.argv[1:]
commit = hf_xet.XetSession().new_upload_commit(endpoint=address, token="local", token_expiry_unix_secs=1 << 40)
with commit:
    commit.start_upload_file(path, sha256=sha256)
"""


class XetStore:
    """The store in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._loaded: dict[str, bytes] = {}

    @staticmethod
    def available() -> bool:
        return importlib.util.find_spec("hf_xet") is not None

    @property
    def address(self) -> str:
        return f"local://{self._directory}"

    def find(self, sha256: str) -> Blob | None:
        """The file with this sha256, if a client has put it here."""
        for found, xet_hash, size in self._files():
            if found == sha256:
                return Blob(sha256, size, partial(self._load, xet_hash, size), xet_hash)
        return None

    def save(self, blob: Blob) -> Blob:
        """The same bytes as a file of this store."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "blob")
            path.write_bytes(blob.load())
            self._run(_SAVE, blob.sha256, str(path), home=folder)
        found = self.find(blob.sha256)
        assert found is not None
        return found

    def _load(self, xet_hash: str, size: int) -> bytes:
        with self._lock:
            if xet_hash not in self._loaded:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "blob")
                    self._run(_LOAD, xet_hash, str(size), str(path), home=folder)
                    self._loaded[xet_hash] = path.read_bytes()
            return self._loaded[xet_hash]

    def _run(self, code: str, *argv: str, home: str) -> None:
        subprocess.run(
            [sys.executable, "-c", code, self.address, *argv],
            check=True,
            capture_output=True,
            timeout=60,
            env={**os.environ, "HF_HOME": home},
        )

    def _files(self) -> Iterator[tuple[str, str, int]]:
        """sha256, Xet hash and size of every file in the store."""
        for shard in sorted(self._directory.glob("xet/xorbs/shards/*.mdb")):
            data = shard.read_bytes()
            at = _RECORD
            while data[at : at + 32] != _END and at + _RECORD <= len(data):
                flags, count = (int.from_bytes(data[at + n : at + n + 4], "little") for n in (32, 36))
                segments = range(at + _RECORD, at + _RECORD * (count + 1), _RECORD)
                size = sum(int.from_bytes(data[n + 36 : n + 40], "little") for n in segments)
                xet_hash = _hex(data[at : at + 32])
                at += _RECORD * (1 + count * (2 if flags >> 31 else 1))
                if flags >> 30 & 1:
                    yield _hex(data[at : at + 32]), xet_hash, size
                    at += _RECORD


def _hex(digest: bytes) -> str:
    return "".join(digest[n : n + 8][::-1].hex() for n in range(0, 32, 8))
