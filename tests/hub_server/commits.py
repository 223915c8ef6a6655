"""Sending files: how each is to be sent (preupload), and the commit that puts them in place."""

from __future__ import annotations

import base64
import json
from typing import Any

from .routes import Hub, Routes
from .store import Blob, Commit, Discussion, File, Repo, stamp
from .wire import RefusedError, Request, Response

routes = Routes()


def proposed_or_written(hub: Hub, request: Request, name: str) -> Repo:
    """The repository, if whoever asks may write to it or, with ``create_pr``, propose to."""
    access = hub.access
    return access.proposable(request, name) if request.flag("create_pr") else access.writable(request, name)


@routes.on("POST", "/api/models/{repo}/preupload/{revision}", "preupload")
def preupload(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    found = _target(hub, request, repo, revision)
    files = found.at(revision).files
    answer = []
    for asked in request.json()["files"]:
        path, size, sample = asked["path"], asked["size"], base64.b64decode(asked["sample"])
        lfs = path.endswith(hub.settings.lfs_suffixes) or size > hub.settings.regular_bytes or b"\0" in sample
        one: dict[str, object] = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if (there := files.get(path)) is not None:
            one["oid"] = there.etag
        answer.append(one)
    return Response.of_json({"files": answer})


@routes.on("POST", "/api/models/{repo}/commit/{revision}", "commit")
def commit(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    found = _target(hub, request, repo, revision)
    author = hub.access.known(request).name
    operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if not operations or operations[0]["key"] != "header":
        raise RefusedError(400, "The first line must be the header")
    header = operations[0]["value"]
    with found.lock:
        parent = found.at(revision)
        claimed = header.get("parentCommit")
        if claimed is not None and not parent.oid.startswith(claimed):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = _changed(hub, parent, operations[1:])
        answer: dict[str, object] = {"success": True, "hookOutput": ""}
        if request.flag("create_pr"):
            opened = open_pull_request(found, header["summary"], header.get("description", ""), author, revision)
            opened.status = "open"
            ref = opened.ref
            answer["pullRequestUrl"] = f"{hub.url}/{found.id}/discussions/{opened.num}"
        else:
            known = found.ref_of(revision)
            if known is None or known.startswith("refs/tags/"):
                raise RefusedError(400, f"{revision} is no branch")
            ref = known
        made = found.commit(ref, files, header["summary"], header.get("description", ""), author, parents=(parent.oid,))
        note_commit(found, ref, made)
    return Response.of_json({**answer, "commitOid": made.oid, "commitUrl": f"{hub.url}/{found.id}/commit/{made.oid}"})


def _target(hub: Hub, request: Request, name: str, revision: str) -> Repo:
    """The repository to send to. Who opened a pull request may add to it with any token."""
    access = hub.access
    repo = access.readable(request, name)
    ref = repo.ref_of(revision) or ""
    if ref.startswith("refs/pr/") and repo.discussion(int(ref[8:])).author == access.known(request).name:
        return repo
    return proposed_or_written(hub, request, name)


def _changed(hub: Hub, parent: Commit, operations: list[dict[str, Any]]) -> dict[str, File]:
    """The files of `parent` after the operations."""
    files = dict(parent.files)
    for operation in operations:
        key, value = operation["key"], operation["value"]
        path = value["path"]
        if {"", ".", ".."} & set(path.removesuffix("/").split("/")):
            raise RefusedError(400, f"Invalid path: {path}")
        if key == "file":
            files[path] = File(hub.store.add_blob(base64.b64decode(value["content"], validate=True)), lfs=False)
        elif key == "lfsFile":
            files[path] = File(_uploaded(hub, value), lfs=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise RefusedError(400, f"A file to delete does not exist: {path}")
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]
        else:
            raise RefusedError(400, f"Unknown operation: {key}")
    return files


def _uploaded(hub: Hub, value: dict[str, Any]) -> Blob:
    """The blob that was sent before the commit that names it."""
    oid = value["oid"]
    blob = hub.store.blobs.get(oid) or hub.xet.find(oid)
    if blob is None or blob.size != value.get("size", blob.size):
        raise RefusedError(
            400, f"Your push was rejected because an LFS pointer pointed to a file that does not exist: {oid}"
        )
    with hub.store.lock:
        return hub.store.blobs.setdefault(oid, blob)


def open_pull_request(repo: Repo, title: str, description: str, author: str, base: str) -> Discussion:
    """A new draft whose ref is the head of `base`."""
    with repo.lock:
        head = repo.at(base)
        found = Discussion(len(repo.discussions) + 1, title, author, repo.now(), "draft", base=base)
        note(repo, found, "comment", author, {"edited": False, "hidden": False, "latest": {"raw": description}})
        repo.discussions.append(found)
        repo.refs[found.ref] = head.oid
    return found


def note(repo: Repo, discussion: Discussion, kind: str, author: str, data: dict[str, object]) -> dict[str, object]:
    """Add an event to a discussion."""
    event: dict[str, object] = {
        "id": f"{discussion.num:08x}{len(discussion.events):016x}",
        "type": kind,
        "createdAt": stamp(repo.now()),
        "author": {"name": author},
        "data": data,
    }
    discussion.events.append(event)
    return event


def note_commit(repo: Repo, ref: str, commit: Commit) -> None:
    """Say in a pull request that a commit was added to it."""
    if ref.startswith("refs/pr/"):
        data: dict[str, object] = {"subject": commit.title, "oid": commit.oid}
        note(repo, repo.discussion(int(ref[8:])), "commit", commit.author, data)
