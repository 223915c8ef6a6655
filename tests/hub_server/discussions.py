"""Discussions and pull requests: listed, opened, commented on, closed and merged."""

from __future__ import annotations

from .commits import note, open_pull_request
from .routes import Hub, Routes
from .store import Discussion, Repo, stamp
from .wire import RefusedError, Request, Response

routes = Routes()
_PAGE = 10  # The client asks for pages by their number, and stops by the count.


@routes.on("GET", "/api/models/{repo}/discussions", "discussions")
def listed(hub: Hub, request: Request, repo: str) -> Response:
    found = hub.access.readable(request, repo)
    kind, status, author = (request.first(name) for name in ("type", "status", "author"))
    chosen = [
        _summary(found, one)
        for one in reversed(found.discussions)
        if kind in ("", "all") or (kind == "pull_request") == one.is_pull_request
        if status in ("", "all") or (status == "open") == (one.status in ("open", "draft"))
        if author in ("", one.author)
    ]
    start = int(request.first("p") or 0) * _PAGE
    return Response.of_json(
        {"discussions": chosen[start : start + _PAGE], "count": len(chosen), "start": start, "numClosedDiscussions": 0}
    )


@routes.on("POST", "/api/models/{repo}/discussions", "discuss")
def opened(hub: Hub, request: Request, repo: str) -> Response:
    found, asked = hub.access.proposable(request, repo), request.json()
    author = hub.access.known(request).name
    if asked.get("pullRequest"):
        one = open_pull_request(found, asked["title"], asked.get("description", ""), author, "main")
    else:
        with found.lock:
            one = Discussion(len(found.discussions) + 1, asked["title"], author, found.now(), "open")
            data: dict[str, object] = {"edited": False, "hidden": False, "latest": {"raw": asked["description"]}}
            note(found, one, "comment", author, data)
            found.discussions.append(one)
    return Response.of_json({"num": one.num, "url": f"{hub.url}/{found.id}/discussions/{one.num}"})


@routes.on("GET", "/api/models/{repo}/discussions/{num}", "discussion")
def details(hub: Hub, request: Request, repo: str, num: str) -> Response:
    found = hub.access.readable(request, repo)
    one = found.discussion(int(num))
    answer = {**_summary(found, one), "events": one.events}
    if one.is_pull_request:
        answer["filesWithConflicts"] = []
        answer["changes"] = {"base": f"refs/heads/{one.base}", "mergeCommitId": one.merged_as}
        answer["diff"] = _diff(found, one)
    return Response.of_json(answer)


@routes.on("POST", "/api/models/{repo}/discussions/{num}/comment", "comment")
def comment(hub: Hub, request: Request, repo: str, num: str) -> Response:
    found = hub.access.proposable(request, repo)
    data: dict[str, object] = {"edited": False, "hidden": False, "latest": {"raw": request.json()["comment"]}}
    event = note(found, found.discussion(int(num)), "comment", hub.access.known(request).name, data)
    return Response.of_json({"newMessage": event})


@routes.on("POST", "/api/models/{repo}/discussions/{num}/comment/{event}/edit", "edit")
def edit(hub: Hub, request: Request, repo: str, num: str, event: str) -> Response:
    """Another text for a comment: the first one is the description. Who wrote it may."""
    found, account = hub.access.proposable(request, repo), hub.access.known(request)
    for one in found.discussion(int(num)).events:
        if one["id"] == event and one["type"] == "comment":
            if one["author"] != {"name": account.name}:
                raise RefusedError(403, "Only the author of a comment edits it")
            one["data"] = {"edited": True, "hidden": False, "latest": {"raw": request.json()["content"]}}
            return Response.of_json({"updatedComment": one})
    raise RefusedError(404, "Comment not found")


@routes.on("POST", "/api/models/{repo}/discussions/{num}/title", "title")
def retitle(hub: Hub, request: Request, repo: str, num: str) -> Response:
    found, one = _changeable(hub, request, repo, num)
    before, one.title = one.title, request.json()["title"]
    event = note(found, one, "title-change", hub.access.known(request).name, {"from": before, "to": one.title})
    return Response.of_json({"newTitle": event})


@routes.on("POST", "/api/models/{repo}/discussions/{num}/status", "status")
def restate(hub: Hub, request: Request, repo: str, num: str) -> Response:
    found, one = _changeable(hub, request, repo, num)
    asked = request.json()
    if one.status == "merged" or asked["status"] not in ("open", "closed"):
        raise RefusedError(400, f"A {one.status} pull request cannot become {asked['status']}")
    one.status = asked["status"]
    author = hub.access.known(request).name
    if asked.get("comment"):
        note(found, one, "comment", author, {"edited": False, "hidden": False, "latest": {"raw": asked["comment"]}})
    event = note(found, one, "status-change", author, {"status": one.status})
    return Response.of_json({"newStatus": event})


@routes.on("POST", "/api/models/{repo}/discussions/{num}/merge", "merge")
def merge(hub: Hub, request: Request, repo: str, num: str) -> Response:
    """Put the changes of a pull request on its branch, as one commit with both as parents."""
    found = hub.access.writable(request, repo)
    one = found.discussion(int(num))
    author = hub.access.known(request).name
    if one.base is None or one.status != "open":
        raise RefusedError(400, "Only an open pull request can be merged")
    with found.lock:
        head, target = found.at(one.ref), found.at(one.base)
        before = {commit.oid for commit in found.history(head)}
        fork = next(commit for commit in found.history(target) if commit.oid in before)
        files = dict(target.files)
        for path in {*fork.files, *head.files}:
            if head.files.get(path) != fork.files.get(path):
                if path in head.files:
                    files[path] = head.files[path]
                else:
                    files.pop(path, None)
        title = f"{one.title} (#{one.num})"
        made = found.commit(f"refs/heads/{one.base}", files, title, "", author, parents=(target.oid, head.oid))
        one.status, one.merged_as = "merged", made.oid
        note(found, one, "status-change", author, {"status": "merged"})
    return Response.of_json({"mergeCommitId": made.oid})


def _changeable(hub: Hub, request: Request, name: str, num: str) -> tuple[Repo, Discussion]:
    """A discussion, if whoever asks opened it or may write to the repository."""
    found = hub.access.proposable(request, name)
    one = found.discussion(int(num))
    if one.author != hub.access.known(request).name:
        hub.access.writable(request, name)
    return found, one


def _summary(repo: Repo, one: Discussion) -> dict[str, object]:
    return {
        "num": one.num,
        "title": one.title,
        "author": {"name": one.author},
        "createdAt": stamp(one.created),
        "status": one.status,
        "repo": {"name": repo.id, "type": "model"},
        "isPullRequest": one.is_pull_request,
    }


def _diff(repo: Repo, one: Discussion) -> str:
    """The paths that a pull request changes; the Hub sends a full diff."""
    head, base = repo.at(one.ref).files, repo.at(one.base or "main").files
    changed = sorted(path for path in {*head, *base} if head.get(path) != base.get(path))
    return "".join(f"diff --git a/{path} b/{path}\n" for path in changed)
