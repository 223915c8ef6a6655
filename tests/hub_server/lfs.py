"""Git LFS: what to send where (batch), the upload to the CDN in one part or many, and the check afterwards."""

from __future__ import annotations

import hashlib
import secrets

from .routes import Hub, Routes
from .wire import RefusedError, Request, Response

routes = Routes()
cdn_routes = Routes()


@routes.on("POST", "/{repo}.git/info/lfs/objects/batch", "lfs-batch")
def batch(hub: Hub, request: Request, repo: str) -> Response:
    """For each object where to send it, or no action if it is stored already.

    Any token may: for a pull request that is yet to be made the client names no ref.
    """
    found = hub.access.proposable(request, repo)
    asked, answer = request.json(), []
    if (ref := asked.get("ref", {}).get("name")) and not ref.startswith("refs/pr/"):
        hub.access.writable(request, repo)
    transfer = hub.settings.transfer if hub.settings.transfer in asked["transfers"] else "basic"
    for one in asked["objects"]:
        oid, size = one["oid"], one["size"]
        reply: dict[str, object] = {"oid": oid, "size": size, "authenticated": True}
        if oid not in hub.store.blobs:
            upload = _parts(hub, oid, size) if transfer == "multipart" else {"href": hub.signed(f"/upload/{oid}")}
            verify = {"href": f"{hub.url}/{found.id}.git/info/lfs/objects/verify"}
            reply["actions"] = {"upload": upload, "verify": verify}
        answer.append(reply)
    return Response.of_json({"transfer": transfer, "objects": answer})


@routes.on("POST", "/{repo}.git/info/lfs/objects/verify", "lfs-verify")
def verify(hub: Hub, request: Request, repo: str) -> Response:
    hub.access.proposable(request, repo)
    asked = request.json()
    blob = hub.store.blobs.get(asked["oid"])
    if blob is None or blob.size != asked["size"]:
        raise RefusedError(404, f"{asked['oid']} was not uploaded")
    return Response.of_json({})


def _parts(hub: Hub, oid: str, size: int) -> dict[str, object]:
    """One signed URL for each part, and the one by which the upload is completed."""
    upload, chunk = secrets.token_hex(8), hub.settings.part_bytes
    count = -(-size // chunk)
    header = {"chunk_size": str(chunk)}
    for number in range(1, count + 1):
        header[f"{number:05d}"] = hub.signed(f"/part/{upload}/{number}")
    complete = hub.signer.sign(f"/api/complete_multipart/{upload}/{oid}/{count}", hub.settings.url_seconds)
    query = "&".join(f"{name}={value}" for name, value in complete.items())
    return {"href": f"{hub.url}/api/complete_multipart/{upload}/{oid}/{count}?{query}", "header": header}


@routes.on("POST", "/api/complete_multipart/{upload}/{oid}/{count}", "lfs-complete")
def complete(hub: Hub, request: Request, upload: str, oid: str, count: str) -> Response:
    """Join the parts. The URL is signed: no token comes with it. Completing twice is fine, as a retry may."""
    hub.signer.check(request)
    if oid in hub.store.blobs:
        return Response.of_json({})
    listed = request.json()["parts"]
    data = []
    for number in range(1, int(count) + 1):
        part = hub.store.parts.get((upload, number))
        if part is None or {"partNumber": number, "etag": _etag(part)} not in listed:
            raise RefusedError(400, f"part {number} of {count} was not uploaded, or its etag is another")
        data.append(part)
    _stored(hub, oid, b"".join(data))
    for number in range(1, int(count) + 1):
        del hub.store.parts[upload, number]
    return Response.of_json({})


@cdn_routes.on("PUT", "/part/{upload}/{number}", "put-part")
def put_part(hub: Hub, request: Request, upload: str, number: str) -> Response:
    hub.signer.check(request)
    if len(request.body) > hub.settings.part_bytes:
        raise RefusedError(400, "a part is larger than chunk_size")
    hub.store.parts[upload, int(number)] = request.body
    return Response(headers={"ETag": _etag(request.body)})


@cdn_routes.on("PUT", "/upload/{oid}", "put")
def put(hub: Hub, request: Request, oid: str) -> Response:
    hub.signer.check(request)
    _stored(hub, oid, request.body)
    return Response(headers={"ETag": _etag(request.body)})


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _stored(hub: Hub, oid: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != oid:
        raise RefusedError(400, "The sha256 of what was uploaded is not its oid")
    hub.store.add_blob(data)
