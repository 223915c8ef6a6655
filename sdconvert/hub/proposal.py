"""Pull requests that add safetensors: their title, their description, and finding one that is there already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from .client import Client
from .evidence import Evidence, code

TITLE = "Adding `safetensors` variant of this model"
"""What transformers looks for (``safetensors_conversion.py``), and what the ecosystem's own converter writes."""


class Proposal(NamedTuple):
    """A pull request that is open. `commit` is the head of it."""

    number: int
    title: str
    author: str
    commit: str
    digests: Mapping[str, str]


def description(
    evidence: Evidence, extra: str | None, number: int | None, deleted: Sequence[str] = (), *, proposed: bool
) -> str:
    """What is said of the commit: what it adds, from where, and how to check it."""
    names = [one.path for one in evidence.sent if one.path.endswith(".safetensors")]
    what = code(names[0]) if len(names) == 1 else f"{len(names)} safetensors files and their index"
    bits = evidence.changed or "bit for bit"
    removed = f"These files are removed: {', '.join(map(code, deleted))}." if deleted else "No file is removed."
    parts = [
        extra.strip() if extra else "",
        f"This adds {what}: the weights of the source, {bits}, in a format that cannot run code. {removed}",
        evidence.table(),
        evidence.check(number, proposed=proposed),
    ]
    return "\n\n".join(part for part in parts if part)


def found(
    client: Client, repo: str, *, title: str, parent: str, paths: Iterable[str], author: str | None = None
) -> list[Proposal]:
    """The open pull requests with that title, of one commit on `parent`, that have all of `paths`; newest first."""
    listed = client.ask(
        repo,
        lambda: list(
            client.api.get_repo_discussions(
                repo, author=author, discussion_type="pull_request", discussion_status="open"
            )
        ),
    )
    proposals = []
    for one in listed:
        if one.title != title or not one.is_pull_request or (author is not None and one.author != author):
            continue
        revision = f"refs/pr/{one.num}"
        commits = client.history(repo, revision)
        if len(commits) > 1 and commits[1].commit_id == parent:
            there = digests(client, repo, revision, paths)
            if set(paths) <= set(there):
                proposals.append(Proposal(one.num, one.title, one.author, commits[0].commit_id, there))
    return proposals


def mine(client: Client, repo: str, *, title: str, parent: str, author: str, request: str) -> Proposal | None:
    """The open pull request in which `author` was asked for the same before, by what its description says."""
    for one in found(client, repo, title=title, parent=parent, paths=[], author=author):
        number = one.number
        details = client.ask(repo, partial(client.api.get_discussion_details, repo, number))
        said = next((event.content for event in details.events if event.type == "comment"), "")
        if code(request) in said:
            return one
    return None


def digests(client: Client, repo: str, revision: str, paths: Iterable[str]) -> dict[str, str]:
    """The SHA-256 (git's id for what is not LFS) of those of `paths` that are there."""
    wanted = list(paths)
    if not wanted:
        return {}
    infos: list[Any] = client.ask(
        repo, lambda: client.api.get_paths_info(repo, wanted, revision=revision), revision=revision
    )
    found: dict[str, str] = {}
    for one in infos:
        lfs = getattr(one, "lfs", None)
        found[one.path] = lfs.sha256 if lfs else getattr(one, "blob_id", "")
    return found


def say_number(client: Client, repo: str, number: int, text: str) -> None:
    """Write the description of a pull request anew, now that its number is known."""
    details = client.ask(repo, lambda: client.api.get_discussion_details(repo, number))
    first = next(event for event in details.events if event.type == "comment")
    client.ask(repo, lambda: client.api.edit_discussion_comment(repo, number, first.id, text))
