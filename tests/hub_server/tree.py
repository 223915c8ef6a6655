"""What is in a revision: the tree, and what is known about single paths."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from urllib.parse import parse_qs

from .routes import Hub, Routes
from .store import Commit, File, Repo, git_sha1
from .wire import RefusedError, Request, Response

routes = Routes()


@routes.on("GET", "/api/models/{repo}/tree/{revision}", "tree")
def tree_root(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    return tree(hub, request, repo, revision, "")


@routes.on("GET", "/api/models/{repo}/tree/{revision}/{path}", "tree")
def tree(hub: Hub, request: Request, repo: str, revision: str, path: str) -> Response:
    found = hub.access.readable(request, repo)
    commit = found.at(revision)
    folder = path.strip("/") + "/" if path.strip("/") else ""
    inside = [name for name in commit.files if name.startswith(folder)]
    if folder and not inside:
        raise RefusedError(
            404, f"{path} does not exist on {revision!r}", "EntryNotFound", {"X-Repo-Commit": commit.oid}
        )
    entries = []
    for name in sorted({*inside, *_folders(inside, folder)}):
        if request.flag("recursive") or "/" not in name[len(folder) :]:
            entries.append(_entry(found, commit, name, expand=request.flag("expand")))
    page, link = hub.paged(request, entries)
    return Response.of_json(page, headers=link)


@routes.on("POST", "/api/models/{repo}/paths-info/{revision}", "paths-info")
def paths_info(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    """What is not there is not in the answer; the client makes its own errors of that."""
    found = hub.access.readable(request, repo)
    commit = found.at(revision)
    if request.headers.get("content-type", "").startswith("application/json"):
        asked = request.json()
        paths, expand = asked["paths"], bool(asked.get("expand"))
    else:
        form = parse_qs(request.body.decode(), keep_blank_values=True)
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("1", "true")
    known = {*commit.files, *_folders(list(commit.files), "")}
    return Response.of_json(
        [_entry(found, commit, path, expand=expand) for path in dict.fromkeys(paths) if path in known]
    )


def _folders(names: list[str], base: str) -> set[str]:
    """All folders below `base` that hold one of `names`."""
    found: set[str] = set()
    for name in names:
        parts = name.split("/")[:-1]
        found |= {folder for n in range(len(parts)) if len(folder := "/".join(parts[: n + 1])) >= len(base)}
    return found


def _entry(repo: Repo, commit: Commit, path: str, *, expand: bool) -> dict[str, object]:
    file = commit.files.get(path)
    if file is None:
        inside = repr(sorted(name for name in commit.files if name.startswith(path + "/"))).encode()
        entry: dict[str, object] = {"type": "directory", "oid": git_sha1(inside), "size": 0, "path": path}
        belongs = path + "/"
    else:
        entry, belongs = {"type": "file", "oid": file.git_oid, "size": file.blob.size, "path": path}, path
        if file.lfs:
            entry["lfs"] = {"oid": file.blob.sha256, "size": file.blob.size, "pointerSize": len(file.pointer)}
        if file.blob.xet_hash:
            entry["xetHash"] = file.blob.xet_hash
    if expand:
        last = _last_change(repo, commit, belongs)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.stamp()}
    return entry


def _last_change(repo: Repo, commit: Commit, path: str) -> Commit:
    """The newest commit that changed `path`, or something in it if it ends with a slash."""

    def seen(files: Mapping[str, File]) -> dict[str, str]:
        inside = path if path.endswith("/") else path + "/"
        return {name: file.etag for name, file in files.items() if name == path or name.startswith(inside)}

    history = repo.history(commit)
    for newer, older in pairwise(history):
        if seen(newer.files) != seen(older.files):
            return newer
    return history[-1]
