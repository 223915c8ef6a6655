"""Is somebody's pull request, which adds safetensors, the same weights as those that are there?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import ChoiceError, UnreadableError, listed, printable, within
from ..formats.weight_files import Weights, weights
from ..limits import DEFAULT_LIMITS, Limits
from ..names import Names
from ..progress import Bar
from ..remote.hub import HubPath
from ..shardnames import as_index, as_shard
from ..verify import Verification, verify
from .client import Client, Repository

_PAGE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/discussions/(?P<number>\d+)/?")
_SHOWN = 20


@dataclass(frozen=True)
class Review:
    """The outcome of comparing the weights that a pull request adds with those of the branch that it is for.

    `base` and `head` are the commits that were compared, `verifications` one for each file or set of shards that the
    pull request adds or changes. `unmatched` are those that nothing on the branch could be compared with; `others`
    what else it changes, which was not looked at.
    """

    repo_id: str
    number: int
    title: str
    author: str
    base: str
    head: str
    verifications: tuple[Verification, ...]
    unmatched: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether it adds weights, and all of them are those of the branch, to the bit."""
        return bool(self.verifications) and not self.unmatched and all(one.equal for one in self.verifications)

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON-ready data."""
        return {
            "repo_id": self.repo_id,
            "pull_request": self.number,
            "title": self.title,
            "author": self.author,
            "base": self.base,
            "head": self.head,
            "equal": self.equal,
            "verifications": [one.to_json() for one in self.verifications],
            "unmatched": list(self.unmatched),
            "others": list(self.others),
        }

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.repo_id}, pull request {self.number} by {self.author}: {self.title}"
        for one in self.verifications:
            yield from str(one).splitlines()
        for path in self.unmatched:
            yield f"different: {path} is added, and there are no such weights on the branch to compare it with"
        if not self.verifications and not self.unmatched:
            yield "it adds no safetensors"
        if self.others:
            yield f"not looked at, but changed too: {listed(self.others, _SHOWN)}"


def review(
    pull_request: str | int,
    repo_id: str | None = None,
    *,
    key: str | None = None,
    names: Names | None = None,
    threads: int | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Bar | bool | None = None,
) -> Review:
    """Compare the safetensors that a pull request adds with the weights of its branch, as that is now, bit by bit.

    `pull_request` is its number, or the URL of its page. Both sides are streamed, at one commit each. `key` and `names`
    choose and rename the tensors of the branch's weights, as in `verify`.
    """
    repo, number = _parse(pull_request, repo_id)
    client = Client(token)
    with within(f"{repo}, pull request {number}"):
        details = client.ask(repo, lambda: client.api.get_discussion_details(repo, number))
        if not details.is_pull_request:
            raise ChoiceError("is a discussion, not a pull request")
        branch = (details.target_branch or "main").removeprefix("refs/heads/")
        head, base = client.look(repo, f"refs/pr/{number}"), client.look(repo, branch)
        if head is None or base is None:
            raise UnreadableError("the repository is not there, or it is private: hf auth login")
        fork = _fork(client, repo, head.commit, branch)
    changed = _changed(fork, head)
    added = [
        path for path in changed if path in head.files and path.endswith((".safetensors", ".safetensors.index.json"))
    ]
    pairs, unmatched = _pairs(added, head, base)
    verifications = []
    for original, new in pairs:
        verifications.append(
            verify(
                str(HubPath(repo, base.commit, original)),
                str(HubPath(repo, head.commit, new)),
                key=key,
                names=names,
                threads=threads,
                token=client.token,
                limits=limits,
                progress=progress,
            )
        )
    others = tuple(path for path in changed if path not in added)
    return Review(
        repo, number, details.title, details.author, base.commit, head.commit, tuple(verifications), unmatched, others
    )


def _parse(pull_request: str | int, repo_id: str | None) -> tuple[str, int]:
    text = str(pull_request)
    if text.isascii() and text.isdigit() and len(text) < 10:
        if repo_id is None or repo_id.count("/") != 1:
            raise ChoiceError(f"pull request {text}: of which repository? Give it as owner/name")
        return repo_id.removeprefix("hf://"), int(text)
    match = _PAGE.fullmatch(urlsplit(text).path)
    if match is None:
        raise ChoiceError(f"{text}: is neither the number nor the address of a pull request")
    if repo_id is not None and repo_id.removeprefix("hf://") != match["repo"]:
        raise ChoiceError(f"{text}: is not of {repo_id}")
    return match["repo"], int(match["number"])


def _fork(client: Client, repo: str, head: str, branch: str) -> Repository:
    """The repository where the pull request left the branch: what it changes is counted from there."""
    ours = {one.commit_id for one in client.history(repo, branch)}
    for one in client.history(repo, head):
        if one.commit_id in ours:
            found = client.look(repo, one.commit_id)
            if found is not None:
                return found
    raise UnreadableError(f"it has nothing in common with {branch}")


def _changed(base: Repository, head: Repository) -> list[str]:
    names: Mapping[str, None] = dict.fromkeys([*base.files, *head.files])
    return sorted(path for path in names if base.files.get(path) != head.files.get(path))


def _pairs(added: list[str], head: Repository, base: Repository) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(original on the branch, new weights) for everything that is added, and what has no original."""
    pairs, unmatched = [], []
    folders = sorted({path.rpartition("/")[0] for path in added})
    for folder in folders:
        names = {path.rpartition("/")[2] for path in added if path.rpartition("/")[0] == folder}
        originals = weights(_names(base, folder))
        seen = set()
        for one in weights(_names(head, folder)):
            if not one.safe or not _is_of(one, names):
                continue
            seen |= {name for name in names if _belongs(one, name)}
            same = [other for other in originals if (other.family, other.variant) == (one.family, one.variant)]
            same.sort(key=lambda other: other.safe)  # A pickle is the original, where there is one.
            if same:
                pairs.append((_joined(folder, same[0].entry), _joined(folder, one.entry)))
            else:
                unmatched.append(_joined(folder, one.entry))
        unmatched += [_joined(folder, name) for name in sorted(names - seen)]
    return pairs, tuple(unmatched)


def _names(repository: Repository, folder: str) -> list[str]:
    below = f"{folder}/" if folder else ""
    return [path[len(below) :] for path in repository.files if path.startswith(below) and "/" not in path[len(below) :]]


def _is_of(one: Weights, names: set[str]) -> bool:
    return any(_belongs(one, name) for name in names)


def _belongs(one: Weights, name: str) -> bool:
    """Whether a file is `one`, or one of its shards."""
    if name == one.entry:
        return True
    index, first, shard = as_index(one.entry), as_shard(one.entry), as_shard(name)
    if shard is None:
        return False
    if index is not None:
        return (shard.stem, shard.ending) == (index.stem, index.ending)
    return first is not None and first._replace(number=shard.number) == shard


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
