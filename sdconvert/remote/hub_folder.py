"""A repository of the Hub, or a directory in it, as a `Folder`: listed once, at one commit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import UnreadableError, within
from .blocks import RemoteSource
from .http import Patience
from .hub import HubPath, HubRanges, asked
from .tokens import find_token


class HubFolder:
    """The files in and below a place on the Hub. One request lists them; each is opened when it is asked for.

    `commit` is the full id that everything is pinned to. `private` and `gated` are what the Hub says of the
    repository: what was read from such a one is not for everybody.
    """

    def __init__(
        self,
        place: HubPath,
        *,
        entry: str = "",
        token: str | None = None,
        endpoint: str | None = None,
        patience: Patience,
    ) -> None:
        from huggingface_hub import HfApi, constants

        self.name, self.entry = str(place), entry
        self._token, self._patience = find_token(token), patience
        self._endpoint = endpoint or constants.ENDPOINT
        api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="sdconvert")
        info = asked(
            lambda: api.model_info(
                place.repo, revision=place.revision or None, files_metadata=True, timeout=patience.timeout
            ),
            place,
            patience,
        )
        if not info.sha:
            raise UnreadableError("the Hub does not say which commit this is")
        self.commit: str = info.sha
        self.private, self.gated = bool(info.private), bool(info.gated)
        self.stem = Path((place.path or place.repo).rsplit("/", 1)[-1])
        self._pinned = place._replace(revision=self.commit)
        self._opened: dict[str, RemoteSource] = {}
        below = f"{place.path}/" if place.path else ""
        found = {
            one.rfilename.removeprefix(below): one.size
            for one in info.siblings or ()
            if one.rfilename.startswith(below) and not {"", ".", ".."} & set(one.rfilename.split("/"))
        }
        if not found and below:
            raise UnreadableError(f"{place.repo} has no file {place.path}")
        if any(type(size) is not int for size in found.values()):
            raise UnreadableError("the Hub does not say how large its files are")
        self.files: Mapping[str, int] = dict(sorted(found.items()))

    @property
    def nbytes(self) -> int:
        """Bytes of the files that were opened; what nobody read is not a part of the checkpoint."""
        return sum(source.nbytes for source in self._opened.values())

    def open(self, name: str) -> RemoteSource:
        """The file called `name`, the same object every time. UnreadableError if there is none."""
        if name not in self._opened:
            if name not in self.files:
                raise UnreadableError(f"{name}: is not there at commit {self.commit}")
            path = f"{self._pinned.path}/{name}" if self._pinned.path else name
            place = self._pinned._replace(path=path)
            ranges = HubRanges(place, token=self._token, endpoint=self._endpoint, patience=self._patience)
            self._opened[name] = RemoteSource(ranges, ranges.digest)
        return self._opened[name]

    def check_unchanged(self) -> None:
        """A commit does not change. UnreadableError if other bytes came of a file than those that are in it."""
        for name, source in self._opened.items():
            with within(name):
                source.check_unchanged()

    @property
    def doubt(self) -> str:
        """Why the bytes of some of its files could not be checked, "" if they were."""
        doubts = [f"{name}: {source.doubt}" for name, source in self._opened.items() if source.doubt]
        return "; ".join(doubts[:3]) + (f"; and {len(doubts) - 3} more files" if len(doubts) > 3 else "")

    def is_same_file(self, other: os.stat_result) -> bool:
        """Never: no output of ours is a file at a server."""
        return False

    def close(self) -> None:
        """Let go of every file that was opened."""
        for source in self._opened.values():
            source.close()
