"""Signed URLs, as a CDN has them: good for one path and for a while, and no token needed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping

from .wire import RefusedError, Request


class Signer:
    """Signs paths and checks signatures. `expire_all()` makes every URL that was signed so far an expired one."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(16)
        self._generation = 0

    def sign(self, path: str, seconds: float, query: Mapping[str, str] | None = None) -> dict[str, str]:
        """The query parameters that make `path` a signed URL."""
        signed = {
            **(query or {}),
            "Expires": f"{time.time() + seconds:.3f}",
            "Generation": str(self._generation),
        }
        return {**signed, "Signature": self._signature(path, signed)}

    def check(self, request: Request) -> None:
        """RefusedError with 403 if the URL is not one that was signed, or not any more; 400 if a token came along."""
        if "authorization" in request.headers:
            raise RefusedError(400, "Only one auth mechanism allowed: a signed URL takes no Authorization header")
        query = {name: values[0] for name, values in request.query.items()}
        given = query.pop("Signature", "")
        if not hmac.compare_digest(given, self._signature(request.path, query)):
            raise RefusedError(403, "SignatureDoesNotMatch")
        if float(query["Expires"]) < time.time() or int(query["Generation"]) < self._generation:
            raise RefusedError(403, "Request has expired")

    def expire_all(self) -> None:
        self._generation += 1

    def _signature(self, path: str, query: Mapping[str, str]) -> str:
        text = repr((path, sorted(query.items()))).encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()
