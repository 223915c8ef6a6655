"""The hub as a test holds it: started on free ports, filled, broken on purpose, looked at, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import commits, content, discussions, lfs, repositories, tree, xet
from .access import Access, Account
from .faults import Fault, Rules
from .log import Log
from .routes import Hub, Routes, Settings
from .store import Commit, File, Repo, Store
from .wire import Origin
from .xet_store import XetStore

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ROOT = Path(__file__).parents[2]
_HUB = Routes().including(
    repositories.routes,
    tree.routes,
    commits.routes,
    discussions.routes,
    lfs.routes,
    xet.routes,
    content.routes,
)
_CDN = Routes().including(lfs.cdn_routes, content.cdn_routes)


class HubServer:
    """A hub with the users ``me`` (tokens to write and to read) and ``stranger``, and no repositories.

    `directory` is for the Xet store and the homes of scenarios. A context manager: running inside it.
    """

    def __init__(self, directory: Path) -> None:
        me, reader, stranger = Account.new("me", "write"), Account.new("me", "read"), Account.new("stranger", "write")
        self.token, self.read_token, self.stranger_token = me.token, reader.token, stranger.token
        self.log, self.rules, self.store = Log(), Rules(), Store()
        self._directory = directory
        self._homes = 0
        access = Access(self.store, [me, reader, stranger])
        self._hub = Hub(self.store, access, XetStore(directory / "cas"))
        hub = self._hub
        self._origins = (
            Origin("hub", "127.0.0.1", lambda request: _HUB.find(hub, request), self.log, self.rules.fault),
            Origin("cdn", "localhost", lambda request: _CDN.find(hub, request), self.log, self.rules.fault),
        )
        hub.url, hub.cdn_url = (origin.url for origin in self._origins)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return self._hub.url

    @property
    def settings(self) -> Settings:
        return self._hub.settings

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token there is: none of them may be in any output."""
        return self.token, self.read_token, self.stranger_token

    def __enter__(self) -> HubServer:
        for origin in self._origins:
            origin.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.log.stop()
        for origin in self._origins:
            origin.stop()

    # What is there.

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        private: bool = False,
        gated: str | None = None,
        xet: bool = False,
    ) -> Repo:
        """A repository with these files on main, without a call of the API. `gated`: ``auto`` or ``manual``."""
        repo = self.store.repos[repo_id] = Repo(repo_id, private=private, gated=gated)
        if files:
            self.add_files(repo_id, files, xet=xet)
        return repo

    def add_files(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        revision: str = "main",
        xet: bool = False,
    ) -> Commit:
        """One more commit on a branch, with these files new or changed."""
        repo = self.store.repos[repo_id]
        parent = repo.at(revision)
        added = {path: self._file(path, data, xet=xet) for path, data in files.items()}
        ref = repo.ref_of(revision)
        assert ref is not None
        return repo.commit(ref, {**parent.files, **added}, "add files", "", repo.owner, parents=(parent.oid,))

    def _file(self, path: str, data: bytes, *, xet: bool) -> File:
        blob = self.store.add_blob(data)
        lfs = path.endswith(self.settings.lfs_suffixes) or blob.size > self.settings.regular_bytes
        if lfs and xet:
            blob = self.store.blobs[blob.sha256] = self._hub.xet.save(blob)
        return File(blob, lfs)

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """The bytes of a file, as they are stored."""
        return self.store.repos[repo_id].at(revision).files[path].blob.load()

    def paths(self, repo_id: str, revision: str = "main") -> list[str]:
        """The files of a revision, sorted."""
        return sorted(self.store.repos[repo_id].at(revision).files)

    # What goes wrong.

    def fail(self, route: str, fault: Fault, *, nth: int = 1, times: int | None = 1) -> None:
        """`fault` on the `nth` call from now on of `route` (``hub.commit``, ``cdn.*``, ``*``), `times` in all."""
        self.rules.add(route, fault, nth=nth, times=times)

    def expire_urls(self) -> None:
        """Every signed URL that is out there gets a 403 from now on."""
        self._hub.signer.expire_all()

    # Who comes.

    def env(self, token: str | None = None, *, xet: bool = True) -> dict[str, str]:
        """The environment for a client in a process of its own: this hub, this token, a home that is new."""
        self._homes += 1
        home = self._directory / f"home{self._homes}"
        home.mkdir()
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XET_"))}
        return {
            **ours,
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")])),
            "NO_PROXY": "127.0.0.1,localhost",
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            **({"HF_TOKEN": token} if token is not None else {}),
        }

    def run(
        self,
        argv: Sequence[str],
        *,
        token: str | None = None,
        xet: bool = True,
        extra: Mapping[str, str] | None = None,
        seconds: float = 60,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python ARGV...`` as a client of this hub. AssertionError if a token is in what it prints.

        Nothing else is checked: look at `returncode`.
        """
        done = subprocess.run(
            [sys.executable, *argv],
            env={**self.env(token, xet=xet), **(extra or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=cwd or self._directory,
        )
        self.assert_no_token(done.stdout + done.stderr)
        return done

    def api(self, token: str | None = None) -> HfApi:
        """A client in this process; without a token it sends none."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=token if token is not None else False)

    def assert_no_token(self, text: str) -> None:
        """AssertionError if any token of this hub is in `text`; the error does not print it either."""
        leaked = [name for name in ("token", "read_token", "stranger_token") if getattr(self, name) in text]
        if leaked:
            raise AssertionError(f"the output holds the {leaked[0].replace('_', ' ')} of the test")

    def assert_healthy(self) -> None:
        """AssertionError if a route of this server failed, or if a token went to the CDN."""
        if self.log.broken:
            raise AssertionError(f"the test server itself failed: {self.log.broken}")
        if astray := [f"{entry.method} {entry.target.split('?')[0]}" for entry in self.log.with_authorization()]:
            raise AssertionError(f"a token went to the CDN: {astray}")
