"""Reading files: `resolve` on the hub, which sends small ones and points to the CDN for the others."""

from __future__ import annotations

from .routes import Hub, Routes
from .wire import RefusedError, Request, Response

routes = Routes()
cdn_routes = Routes()


@routes.on("GET", "/{repo}/resolve/{revision}/{path}", "resolve")
def resolve(hub: Hub, request: Request, repo: str, revision: str, path: str) -> Response:
    found = hub.access.opened(request, repo)
    commit = found.at(revision)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    file = commit.files.get(path)
    if file is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
    if not file.lfs:
        headers |= {"ETag": f'"{file.git_oid}"', "Content-Disposition": f'inline; filename="{path.split("/")[-1]}"'}
        return Response(200, headers, file.blob.load(), ranged=True)
    headers |= {
        "X-Linked-Size": str(file.blob.size),
        "X-Linked-ETag": f'"{file.blob.sha256}"',
        "Location": hub.signed(f"/blob/{file.blob.sha256}"),
    }
    if file.blob.xet_hash:
        refresh = f"{hub.url}/api/models/{repo}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": file.blob.xet_hash, "Link": f'<{refresh}>; rel="xet-auth"'}
    return Response(302, headers)


@cdn_routes.on("GET", "/blob/{sha256}", "get")
def blob(hub: Hub, request: Request, sha256: str) -> Response:
    hub.signer.check(request)
    found = hub.store.blobs.get(sha256)
    if found is None:
        raise RefusedError(404, "NoSuchKey")
    return Response(200, {"ETag": f'"{sha256}"'}, found.load(), ranged=True)
