"""One commit: the files are sent first, each by itself, and then named all at once. Never made twice.

The client does not repeat the request that makes the commit, and rightly so: when its answer is lost nobody knows
whether it was made. So whoever asks again looks for it first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError, SdconvertError
from ..progress import Bar, no_bar
from ..remote.http import PassingError
from ..remote.hub import HubPath, asked_once
from ..remote.tokens import scrubbed
from .client import Client
from .proposal import digests, found
from .publication import Sent


class Addition(NamedTuple):
    """A file to be: where it lies here, and its name in the repository."""

    path: str
    file: Path


@dataclass
class Change:
    """What is to be committed on `parent`, the head of `revision`, by `author`; with `create_pr` as a pull request."""

    repo: str
    revision: str
    parent: str
    author: str
    title: str
    description: str
    create_pr: bool
    deletions: tuple[str, ...]
    operations: list[Any] = field(default_factory=list)
    ids: dict[str, frozenset[str]] = field(default_factory=dict)  # SHA-256 and git's id, by path.


class Made(NamedTuple):
    """A commit that is there, and the number of its pull request, if it is one."""

    commit: str
    number: int | None


def prepared(additions: Sequence[Addition], progress: Bar = no_bar) -> tuple[list[Any], tuple[Sent, ...]]:
    """The client's operations for the files, which are read once for their digests."""
    from huggingface_hub import CommitOperationAdd

    operations = []
    with progress("hashing", sum(one.file.stat().st_size for one in additions)) as update:
        for one in additions:
            operations.append(CommitOperationAdd(one.path, str(one.file)))
            update(one.file.stat().st_size)
    sent = tuple(Sent(one.path_in_repo, one.upload_info.size, one.upload_info.sha256.hex()) for one in operations)
    return operations, sent


def upload(client: Client, change: Change) -> None:
    """Send the content of every file. Nothing is visible yet, and sending it again costs nothing."""
    for operation in change.operations:
        client.ask(change.repo, _sending(partial(_preupload, client, change, operation)))
        if getattr(operation, "_should_ignore", False):
            raise OutputError(f"{change.repo} has a .gitignore that leaves out {operation.path_in_repo}")


def commit(client: Client, change: Change) -> Made:
    """Make the commit, and see that the Hub has what was meant. OutputError when somebody was faster, or it has not."""
    from huggingface_hub import CommitOperationDelete

    operations = [*change.operations, *(CommitOperationDelete(path, is_folder=False) for path in change.deletions)]
    place = HubPath(change.repo, change.revision, "")

    def send() -> Made:
        info = client.api.create_commit(
            change.repo,
            operations,
            commit_message=change.title,
            commit_description=change.description,
            revision=change.revision,
            create_pr=change.create_pr,
            parent_commit=change.parent,
        )
        return Made(info.oid, int(info.pr_num) if change.create_pr and info.pr_num else None)

    tried = 0
    while True:
        try:
            made: Made = asked_once(_sending(send), place)
            break
        except (PassingError, SdconvertError) as error:
            if isinstance(error, PassingError):
                tried += 1
                client.patience.wait(tried, error.after)
            elif not isinstance(error, _StaleError):
                raise
            earlier = _made(client, change)
            if earlier is not None:
                made = earlier
                break
            if isinstance(error, SdconvertError):
                raise
            if tried >= client.patience.tries:
                raise OutputError(f"the Hub does not take the commit: {error}. Tried {tried} times") from None
    _check(client, change, made)
    return made


class _StaleError(OutputError):
    """The revision has another head than the one that the commit was to be made on."""


def _preupload(client: Client, change: Change, operation: Any) -> None:
    client.api.preupload_lfs_files(
        change.repo, [operation], revision=change.revision, create_pr=change.create_pr, free_memory=False
    )


def _sending(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, with the errors of the transfer libraries, which are not the Hub client's, in words of ours."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    def sent() -> Any:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 412:
                raise _StaleError(
                    "somebody changed the repository since it was looked at; nothing was committed. Run it again"
                ) from None
            raise
        except (SdconvertError, httpx.HTTPError):
            raise
        except (OSError, RuntimeError) as error:  # hf_xet's, and the socket's.
            raise PassingError(scrubbed(error)[:300] or type(error).__name__) from None

    return sent


def _made(client: Client, change: Change) -> Made | None:
    """The commit, if a request whose answer was lost has made it."""
    wanted = [one.path_in_repo for one in change.operations]
    if change.create_pr:
        for one in found(
            client, change.repo, title=change.title, parent=change.parent, paths=wanted, author=change.author
        ):
            if _right(change, one.digests):
                return Made(one.commit, one.number)
        return None
    commits = client.history(change.repo, change.revision)
    if len(commits) < 2 or commits[0].title != change.title or commits[1].commit_id != change.parent:
        return None
    there = digests(client, change.repo, commits[0].commit_id, wanted)
    return Made(commits[0].commit_id, None) if _right(change, there) else None


def _check(client: Client, change: Change, made: Made) -> None:
    paths = [one.path_in_repo for one in change.operations]
    if not _right(change, digests(client, change.repo, made.commit, paths)):
        raise OutputError(f"the Hub says that commit {made.commit} has other files than were sent. Look at it")


def _right(change: Change, there: dict[str, str] | Any) -> bool:
    return all(there.get(path) in ids for path, ids in change.ids.items())


def identities(operations: Sequence[Any]) -> dict[str, frozenset[str]]:
    """What the Hub may call each file: the SHA-256 when it is in LFS, git's id when it is not (small ones only)."""
    from huggingface_hub.utils.sha import git_hash

    known: dict[str, frozenset[str]] = {}
    for one in operations:
        ids = {one.upload_info.sha256.hex()}
        if one.upload_info.size <= 32 << 20:
            with one.as_file() as file:
                ids.add(git_hash(file.read()))
        known[one.path_in_repo] = frozenset(ids)
    return known
