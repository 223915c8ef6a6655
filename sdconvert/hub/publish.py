"""Publish weights: convert, verify, then one commit. Nothing is sent before all of it is known to be right."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..convert import convert
from ..errors import OutputError, SdconvertError, UnreadableError
from ..limits import DEFAULT_LIMITS, Limits
from ..names import Names
from ..opening import PathLike
from ..progress import Bar, bar_of, no_bar
from ..report import Output, Report, Shard
from ..verify import digest as digest_of
from . import naming, proposal, provenance
from .card import card
from .client import MAIN, Client, Repository, publishing
from .commit import Addition, Change, Made, commit, identities, prepared, upload
from .evidence import Evidence, request_id
from .permission import check_deletion, check_new, check_public, check_target
from .publication import Publication

_CARD = "README.md"


def push(
    source: PathLike,
    repo_id: str,
    *,
    create_pr: bool = False,
    private: bool = False,
    revision: str | None = None,
    path_in_repo: str = "",
    max_shard_size: int | str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    delete_original: bool = False,
    license: str | None = None,  # noqa: A002 - the card's word for it
    base_model: str | None = None,
    force_public: bool = False,
    key: str | None = None,
    names: Names | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    densify: bool = False,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Bar | bool | None = None,
) -> Publication:
    """Write the weights of `source` to the repository `repo_id` of the Hub, as safetensors, in one commit.

    The commit goes on `revision` (``main``), or with `create_pr` into a pull request; one that is there already is
    found and not repeated. A repository that is not there is made, with `private` for its owner only, and with a card
    of what is known: `license` and `base_model`, what `source`'s own card says, what was converted. What came from a
    private or gated repository goes into a public one only with `force_public`. `delete_original` removes in the same
    commit the files that were converted: only from the repository that they came from, and only if nothing is lost.

    `path_in_repo` is a directory of the repository, or a name that ends in ``.safetensors``. `token` is that of
    ``HF_TOKEN`` or ``hf auth login`` without one. Other arguments are those of `convert`. The files are
    written to a temporary directory first (``TMPDIR``), which needs room for all of them.

    OutputError when the Hub does not take it; then nothing is visible there, but perhaps an empty new repository.
    """
    began = time.perf_counter()
    names, progress = names or Names(), bar_of(progress)
    client = Client(token)
    target = _Target(repo_id, revision or MAIN, create_pr, private, force_public)
    with publishing():
        author, owned = client.user(repo_id) if client.token or not dry_run else ("", frozenset())
    origin = provenance.find(client, source, (repo_id, target.revision))
    with publishing():
        there = client.look(repo_id, revision or "")
    check_target(repo_id, there, create_pr=create_pr, private=private, revision=revision, origin=origin)
    check_public(repo_id, there, private=private, force=force_public, origin=origin)
    read = provenance.look_into(origin, key=key, names=names, token=client.token, limits=limits)
    changed = [f"cast to {dtype}"] * bool(dtype) + ["dequantized"] * dequantize + ["densified"] * densify
    doomed: tuple[str, ...] = ()
    if delete_original:
        doomed = check_deletion(repo_id, there, origin, read, owned, create_pr=create_pr, changed=changed, names=names)
    directory, stem = naming.place_of(origin, read, repo_id, path_in_repo)
    check_new(repo_id, there, directory + stem, create_pr=create_pr, origin=origin)
    title = commit_message or (proposal.TITLE if create_pr else "Add weights as safetensors")
    request = request_id(
        origin,
        key=key,
        names=names,
        changed=changed,
        shards=max_shard_size,
        metadata=dict(metadata or {}),
        place=directory + stem,
    )
    if create_pr and there is not None and origin.repository is not None:
        with publishing():
            earlier = proposal.mine(client, repo_id, title=title, parent=there.commit, author=author, request=request)
        if earlier is not None:
            return _found(client, target, earlier, title, time.perf_counter() - began)
    before = provenance.state_of(origin, read)
    with tempfile.TemporaryDirectory(prefix="sdconvert-") as folder, _bars(progress):
        report = convert(
            origin.pinned,
            Path(folder, f"{stem}.safetensors"),
            key=key,
            names=names,
            dtype=dtype,
            dequantize=dequantize,
            densify=densify,
            max_shard_size=max_shard_size,
            metadata=metadata,
            threads=threads,
            token=client.token,
            limits=limits,
            progress=progress,
        )
        files = [Path(output.path) for output in report.outputs]
        with publishing():
            operations, sent = prepared([Addition(directory + file.name, file) for file in files], progress)
        weights = digest_of(files[0], threads=threads, limits=limits, progress=progress)
        evidence = Evidence(
            origin,
            provenance.files_of(origin, read, before, progress),
            sent,
            weights,
            _renamed(report, origin, directory),
            key,
            names,
            ", ".join(changed),
            repo_id,
            request if create_pr else "",
            beside=provenance.is_of(origin, repo_id) and bool(read.entry) and not path_in_repo,
        )
        new_card = there is None or (there.is_empty and not path_in_repo.strip("/") and not create_pr)
        if new_card:
            text = Path(folder, _CARD)
            text.write_text(card(evidence, license, base_model), encoding="utf-8")
            more, with_card = prepared([Addition(_CARD, text)])
            operations, sent = operations + more, sent + with_card
        stale = naming.stale(there.files if there else (), directory, stem, [one.path for one in sent])
        deleted = tuple(sorted({*stale, *doomed}))
        change = Change(
            repo_id,
            target.revision,
            there.commit if there else "",
            author,
            title,
            proposal.description(evidence, commit_description, None, deleted, proposed=create_pr),
            create_pr,
            deleted,
            operations,
            identities(operations),
        )
        done = Publication(
            repo_id=repo_id,
            revision=target.revision,
            outcome="dry-run",
            url=client.url(repo_id),
            commit="",
            number=None,
            created=there is None,
            private=there.private if there else private or None,
            files=sent,
            deleted=deleted,
            title=title,
            description=change.description,
            digest=weights,
            report=evidence.report,
            warnings=_card_unused(new_card, license, base_model),
            seconds=0.0,
        )
        if not dry_run:
            with publishing():
                if there is None:
                    there = _created(client, target, evidence)
                    change.parent = there.commit
                    done = replace(done, private=there.private)
                with _left_behind(done):
                    done = _send(client, target, change, there, evidence, commit_description, done)
        return replace(done, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class _Target:
    repo: str
    revision: str
    create_pr: bool
    private: bool
    force_public: bool


def _send(
    client: Client,
    target: _Target,
    change: Change,
    there: Repository,
    evidence: Evidence,
    extra: str | None,
    done: Publication,
) -> Publication:
    if not change.deletions and _is_there(there, change):
        return replace(done, outcome="unchanged", commit=there.commit, title="", description="")
    if target.create_pr:
        paths = [one.path for one in done.files]
        for one in proposal.found(client, target.repo, title=change.title, parent=change.parent, paths=paths):
            if all(one.digests.get(path) in ids for path, ids in change.ids.items()):
                same = _found(client, target, one, change.title, 0.0)
                return replace(same, files=done.files, digest=done.digest, report=done.report)
            other = f"pull request {one.number} of {one.author} has other bytes under the same names"
            done = replace(done, warnings=(*done.warnings, other))
    upload(client, change)
    made = commit(client, change)
    if made.number is None:
        return replace(done, outcome="committed", commit=made.commit)
    return _numbered(client, change, made, evidence, extra, done)


def _found(client: Client, target: _Target, one: proposal.Proposal, title: str, seconds: float) -> Publication:
    return Publication(
        repo_id=target.repo,
        revision=target.revision,
        outcome="exists",
        url=client.url(target.repo, f"/discussions/{one.number}"),
        commit=one.commit,
        number=one.number,
        created=False,
        private=None,
        files=(),
        deleted=(),
        title=title,
        description="",
        digest="",
        report=None,
        warnings=(),
        seconds=seconds,
    )


def _numbered(
    client: Client, change: Change, made: Made, evidence: Evidence, extra: str | None, done: Publication
) -> Publication:
    """The pull request is there: put its number in the command that checks it."""
    assert made.number is not None
    text = proposal.description(evidence, extra, made.number, change.deletions, proposed=True)
    warnings = done.warnings
    try:
        proposal.say_number(client, change.repo, made.number, text)
    except (OutputError, UnreadableError) as error:
        warnings = (*warnings, f"its description does not have its number in the command that checks it: {error}")
        text = change.description
    return replace(
        done,
        outcome="proposed",
        url=client.url(change.repo, f"/discussions/{made.number}"),
        commit=made.commit,
        number=made.number,
        description=text,
        warnings=warnings,
    )


def _created(client: Client, target: _Target, evidence: Evidence) -> Repository:
    """A new repository. Its visibility is looked at: an answer may be lost, an organization has defaults of its own."""
    private = True if target.private else None
    client.ask(target.repo, lambda: client.api.create_repo(target.repo, private=private, exist_ok=True))
    there = client.look(target.repo)
    if there is None:
        raise OutputError(f"{target.repo} was made, and is not there. Try again")
    if target.revision != MAIN:
        client.ask(target.repo, lambda: client.api.create_branch(target.repo, branch=target.revision, exist_ok=True))
    check_target(
        target.repo, there, create_pr=False, private=target.private, revision=target.revision, origin=evidence.origin
    )
    check_public(target.repo, there, private=target.private, force=target.force_public, origin=evidence.origin)
    if not there.is_empty:
        raise OutputError(f"somebody made {target.repo} meanwhile and put files there. Run it again")
    return there


def _is_there(there: Repository, change: Change) -> bool:
    """Whether the head has these very files."""
    for path, ids in change.ids.items():
        one = there.files.get(path)
        if one is None or (one.sha256 or one.git_id) not in ids:
            return False
    return True


def _renamed(report: Report, origin: provenance.Origin, directory: str) -> Report:
    """The report with names in the repository instead of those in a temporary directory."""

    def name(path: str) -> str:
        return directory + os.path.basename(path)

    return replace(
        report,
        source=origin.pinned,
        outputs=tuple(Output(name(one.path), one.nbytes) for one in report.outputs),
        shards=tuple(Shard(name(one.path), one.nbytes, one.names) for one in report.shards),
    )


def _card_unused(new_card: bool, license: str | None, base_model: str | None) -> tuple[str, ...]:  # noqa: A002
    if new_card or not (license or base_model):
        return ()
    return ("the repository has its own card; --license and --base-model were not written to it",)


@contextmanager
def _left_behind(done: Publication) -> Iterator[None]:
    """An error in here says what is left on the Hub: an empty repository, if it was made for this."""
    try:
        yield
    except SdconvertError as error:
        if done.created:
            error.message += f". The new repository {done.repo_id} is there, without the weights"
        raise


@contextmanager
def _bars(progress: Bar) -> Iterator[None]:
    """No progress bars of the client either, when none are wanted."""
    from huggingface_hub import utils as client

    silent = (progress is no_bar or not sys.stderr.isatty()) and not client.are_progress_bars_disabled()  # type: ignore[attr-defined]
    if silent:
        client.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if silent:
            client.enable_progress_bars()  # type: ignore[attr-defined]
