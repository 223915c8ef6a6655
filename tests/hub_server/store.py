"""What a hub keeps: blobs by their sha256, and repositories of commits, refs and discussions. All in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import MappingProxyType

from .wire import RefusedError

_START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def git_sha1(data: bytes | memoryview) -> str:
    """The id git gives a file: SHA-1 over ``blob <length>\\0`` and the bytes."""
    digest = hashlib.sha1(f"blob {len(data)}\0".encode(), usedforsecurity=False)
    digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Blob:
    """Bytes that are stored. What came through Xet has `xet_hash` and is rebuilt when somebody asks for it."""

    sha256: str
    size: int
    load: Callable[[], bytes]
    xet_hash: str | None = None

    @classmethod
    def of(cls, data: bytes) -> Blob:
        return cls(hashlib.sha256(data).hexdigest(), len(data), lambda: data)


@dataclass(frozen=True)
class File:
    """A file of a commit: `lfs` ones are a pointer in git, and a blob beside it."""

    blob: Blob
    lfs: bool

    @property
    def git_oid(self) -> str:
        return git_sha1(self.pointer if self.lfs else self.blob.load())

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.blob.sha256}\nsize {self.blob.size}\n"
        ).encode()

    @property
    def etag(self) -> str:
        return self.blob.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parents: tuple[str, ...]
    title: str
    message: str
    author: str
    date: datetime
    files: Mapping[str, File]

    def stamp(self) -> str:
        return stamp(self.date)


@dataclass
class Discussion:
    """A discussion or, with `base` and `ref`, a pull request. `status`: draft, open, closed or merged."""

    num: int
    title: str
    author: str
    created: datetime
    status: str
    events: list[dict[str, object]] = field(default_factory=list)
    base: str | None = None
    merged_as: str | None = None

    @property
    def is_pull_request(self) -> bool:
        return self.base is not None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


class Repo:
    """A repository: `refs` maps full names (``refs/heads/main``, ``refs/pr/1``) to commits."""

    def __init__(self, name: str, *, private: bool = False, gated: str | None = None) -> None:
        self.id, self.private, self.gated = name, private, gated
        self.allowed: set[str] = set()  # Users who were let through the gate.
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.discussions: list[Discussion] = []
        self.lock = threading.RLock()
        self._ticks = 0
        self.commit("refs/heads/main", {}, "initial commit", "", self.owner, parents=())

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def now(self) -> datetime:
        """A clock that moves one second with every look at it, so that orders can be told."""
        self._ticks += 1
        return _START + timedelta(seconds=self._ticks)

    def ref_of(self, revision: str) -> str | None:
        """The full name of the ref that `revision` means; None if it is a commit or nothing."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}", revision.replace("pr/", "refs/pr/", 1))
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or (at least 7 digits of a) commit id names."""
        ref = self.ref_of(revision)
        if ref is not None:
            return self.commits[self.refs[ref]]
        found = [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def commit(
        self,
        ref: str,
        files: Mapping[str, File],
        title: str,
        message: str,
        author: str,
        *,
        parents: tuple[str, ...],
    ) -> Commit:
        """Put a commit with exactly these files on `ref`, which is made if it is not there."""
        with self.lock:
            date = self.now()
            seed = repr((self.id, ref, title, author, date, parents, sorted((p, f.etag) for p, f in files.items())))
            oid = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
            commit = Commit(oid, parents, title, message, author, date, MappingProxyType(dict(files)))
            self.commits[oid] = commit
            self.refs[ref] = oid
            return commit

    def history(self, commit: Commit) -> list[Commit]:
        """The commit and its first parents, newest first."""
        found = [commit]
        while found[-1].parents:
            found.append(self.commits[found[-1].parents[0]])
        return found

    def discussion(self, num: int) -> Discussion:
        if not 1 <= num <= len(self.discussions):
            raise RefusedError(404, f"Discussion {num} not found")
        return self.discussions[num - 1]


def stamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Store:
    """Repositories by name blobs by sha256 and parts of uploads, of one hub."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, Blob] = {}
        self.parts: dict[tuple[str, int], bytes] = {}  # Of multipart uploads that are not complete.
        self.lock = threading.RLock()

    def add_blob(self, data: bytes) -> Blob:
        blob = Blob.of(data)
        with self.lock:
            return self.blobs.setdefault(blob.sha256, blob)
