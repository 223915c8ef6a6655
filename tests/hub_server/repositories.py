"""Accounts, repositories, branches, tags and their histories."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from .routes import Hub, Routes
from .store import Commit, File, Repo
from .wire import RefusedError, Request, Response

routes = Routes()
_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)


@routes.on("GET", "/api/whoami-v2", "whoami")
def whoami(hub: Hub, request: Request) -> Response:
    account = hub.access.known(request)
    return Response.of_json(
        {
            "type": "user",
            "id": account.name,
            "name": account.name,
            "fullname": account.name.title(),
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}},
        }
    )


@routes.on("GET", "/api/agent-harnesses", "agents")
def agents(hub: Hub, request: Request) -> Response:
    return Response.of_json([])


@routes.on("POST", "/api/validate-yaml", "validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Response:
    try:
        _card(request.json()["content"].encode())
    except ValueError as error:
        return Response.of_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Response.of_json({"errors": [], "warnings": []})


@routes.on("POST", "/api/repos/create", "create")
def create(hub: Hub, request: Request) -> Response:
    asked, account = request.json(), hub.access.writer(request)
    owner = asked.get("organization") or account.name
    if asked.get("type") not in (None, "model"):
        raise RefusedError(400, "This hub has models only")
    if owner != account.name:
        raise RefusedError(403, f"You don't have the rights to create a model under the namespace {owner}")
    name = f"{owner}/{asked['name']}"
    reply = {"url": f"{hub.url}/{name}", "name": name, "id": name}
    with hub.store.lock:
        if name in hub.store.repos:
            return Response.of_json({"error": "You already created this model repo", **reply}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        hub.store.repos[name] = Repo(name, private=private)
    return Response.of_json(reply)


@routes.on("DELETE", "/api/repos/delete", "delete")
def delete(hub: Hub, request: Request) -> Response:
    asked, account = request.json(), hub.access.known(request)
    repo = hub.access.writable(request, f"{asked.get('organization') or account.name}/{asked['name']}")
    with hub.store.lock:
        del hub.store.repos[repo.id]
    return Response.of_json({})


@routes.on("PUT", "/api/models/{repo}/settings", "settings")
def settings(hub: Hub, request: Request, repo: str) -> Response:
    asked, found = request.json(), hub.access.writable(request, repo)
    if "visibility" in asked or "private" in asked:
        found.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    if "gated" in asked:
        found.gated = asked["gated"] or None
    return Response.of_json({"private": found.private, "gated": found.gated or False})


@routes.on("GET", "/api/models/{repo}/auth-check", "auth-check")
def auth_check(hub: Hub, request: Request, repo: str) -> Response:
    hub.access.opened(request, repo)
    return Response.of_json({})


@routes.on("GET", "/api/models/{repo}/auth-check/write", "auth-check")
def auth_check_write(hub: Hub, request: Request, repo: str) -> Response:
    hub.access.writable(request, repo)
    return Response.of_json({})


@routes.on("GET", "/api/models/{repo}/refs", "refs")
def refs(hub: Hub, request: Request, repo: str) -> Response:
    found = hub.access.readable(request, repo)

    def under(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name.removeprefix(prefix), "ref": name, "targetCommit": oid}
            for name, oid in found.refs.items()
            if name.startswith(prefix)
        ]

    answer = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
    if request.flag("include_prs"):
        answer["pullRequests"] = under("refs/pr/")
    return Response.of_json(answer)


@routes.on("POST", "/api/models/{repo}/branch/{name}", "branch")
def branch(hub: Hub, request: Request, repo: str, name: str) -> Response:
    found = hub.access.writable(request, repo)
    asked = request.json() if request.body else {}
    return _new_ref(found, f"refs/heads/{name}", asked.get("startingPoint") or "main")


@routes.on("POST", "/api/models/{repo}/tag/{revision}", "tag")
def tag(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    found = hub.access.writable(request, repo)
    return _new_ref(found, f"refs/tags/{request.json()['tag']}", revision)


def _new_ref(repo: Repo, ref: str, revision: str) -> Response:
    with repo.lock:
        if ref in repo.refs:
            raise RefusedError(409, f"Reference already exists: {ref}")
        repo.refs[ref] = repo.at(revision).oid
    return Response.of_json({})


@routes.on("GET", "/api/models/{repo}/commits/{revision}", "commits")
def commits(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    found = hub.access.readable(request, repo)
    page, link = hub.paged(request, found.history(found.at(revision)))
    items = [
        {"id": c.oid, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.stamp()}
        for c in page
    ]
    return Response.of_json(items, headers=link)


@routes.on("GET", "/api/models/{repo}/revision/{revision}", "info")
def info_at(hub: Hub, request: Request, repo: str, revision: str) -> Response:
    return info(hub, request, repo, revision)


@routes.on("GET", "/api/models/{repo}", "info")
def info(hub: Hub, request: Request, repo: str, revision: str = "main") -> Response:
    found = hub.access.readable(request, repo)
    commit = found.at(revision)
    card = _card(commit.files["README.md"].blob.load()) if "README.md" in commit.files else {}
    answer: dict[str, object] = {
        "_id": found.id,
        "id": found.id,
        "modelId": found.id,
        "author": found.owner,
        "sha": commit.oid,
        "lastModified": commit.stamp(),
        "createdAt": found.history(commit)[-1].stamp(),
        "private": found.private,
        "gated": found.gated or False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "siblings": [
            {"rfilename": path, **(_sizes(file) if request.flag("blobs") else {})}
            for path, file in sorted(commit.files.items())
        ],
    }
    if card:
        answer["cardData"] = card
    if (parameters := _parameters(commit)) is not None:
        answer["safetensors"] = {"parameters": parameters, "total": sum(parameters.values())}
    return Response.of_json(answer)


def _sizes(file: File) -> dict[str, object]:
    sizes: dict[str, object] = {"size": file.blob.size, "blobId": file.git_oid}
    if file.lfs:
        sizes["lfs"] = {"sha256": file.blob.sha256, "size": file.blob.size, "pointerSize": len(file.pointer)}
    return sizes


def _card(text: bytes) -> dict[str, Any]:
    """The front matter of a README. ValueError if it is no YAML mapping."""
    import yaml  # type: ignore[import-untyped]

    match = _FRONT.match(text.decode())
    if match is None:
        return {}
    try:
        found = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError("the front matter is no mapping")
    return found


def _parameters(commit: Commit) -> dict[str, int] | None:
    """Elements by dtype of ``model.safetensors``, as the Hub counts them; None if there is no such file."""
    file = commit.files.get("model.safetensors")
    if file is None:
        return None
    data = file.blob.load()
    counts: Counter[str] = Counter()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        for name, tensor in header.items():
            if name != "__metadata__":
                numel = 1
                for size in tensor["shape"]:
                    numel *= size
                counts[tensor["dtype"]] += numel
    except (ValueError, KeyError, TypeError):
        return None
    return dict(counts)
