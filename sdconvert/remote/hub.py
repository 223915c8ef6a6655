"""Files of the Hub: ``hf://owner/name[@revision]/path``, read where the Hub keeps them.

One HEAD gives size, commit and a signed address; ranges are then asked for at that address, which takes
no token. Everything is pinned to the commit that the first answer names: a push in between changes nothing.
Only `huggingface_hub` talks to the Hub itself.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ..errors import SdconvertError, UnreadableError
from .http import HttpRanges, Location, PassingError, Patience
from .tokens import find_token, scrubbed

_URL = re.compile(
    r"hf://(?:models/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]*))?(?:/(?P<path>.*))?"
)


_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class NotThereError(UnreadableError):
    """The repository and the revision are there, a file of this name is not. It may be a directory."""


class HubPath(NamedTuple):
    """A place on the Hub. `revision` "" is the default branch, `path` "" the whole repository."""

    repo: str
    revision: str
    path: str

    @classmethod
    def parse(cls, url: str, revision: str | None = None) -> HubPath:
        """The place that an ``hf://`` URL names. UnreadableError if it names none, or two revisions.

        A revision with slashes in it is percent-encoded, but ``refs/pr/1`` may stand as it is.
        """
        match = _URL.fullmatch(url)
        if match is None or url.startswith(("hf://datasets/", "hf://spaces/", "hf://buckets/")):
            raise UnreadableError(f"{scrubbed(url)}: is not hf://owner/name[@revision][/path] of a model")
        written = unquote(match["revision"] or "")
        if revision and written and revision != written:
            raise UnreadableError(f"{scrubbed(url)}: names a revision, and --revision {revision} is another one")
        return cls(match["repo"], written or revision or "", (match["path"] or "").strip("/"))

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


def open_file(
    place: HubPath, *, token: str | None = None, endpoint: str | None = None, patience: Patience
) -> HubRanges:
    """One file of a repository. UnreadableError says what is not there, or who may not see it."""
    return HubRanges(place, token=find_token(token), endpoint=endpoint, patience=patience)


class HubRanges(HttpRanges):
    """A file at a commit. `commit` is its full id, `etag_of_content` the sha256 of an LFS file, else git's own id."""

    def __init__(self, place: HubPath, *, token: str | None, endpoint: str | None, patience: Patience) -> None:
        from huggingface_hub import constants

        self.place, self._token, self._endpoint = place, token, endpoint or constants.ENDPOINT
        self.commit, self.etag_of_content = place.revision, ""
        self._patience = patience
        meta = self._metadata()
        if meta.size is None or meta.commit_hash is None or not meta.etag:
            raise UnreadableError("the Hub does not say how large the file is, or of which commit")
        self.commit, self.etag_of_content = meta.commit_hash, meta.etag
        super().__init__(str(place), meta.size, self._where(meta), self._sign, fixed=True, patience=patience)

    @property
    def digest(self) -> str:
        """The SHA-256 of an LFS file, git's id of another; "" when the Hub tells neither."""
        return self.etag_of_content if _DIGEST.fullmatch(self.etag_of_content) else ""

    def _sign(self) -> Location:
        meta = self._metadata()
        if (meta.size, meta.etag) != (self.nbytes, self.etag_of_content):
            raise UnreadableError(f"the Hub has another file now at commit {self.commit}. Try again")
        return self._where(meta)

    def _where(self, meta: Any) -> Location:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        if _origin(meta.location) != _origin(self._endpoint):
            return Location(meta.location)
        return Location(meta.location, build_hf_headers(token=self._token or False, library_name="sdconvert"))

    def _metadata(self) -> Any:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.place.repo, self.place.path, revision=self.commit or None, endpoint=self._endpoint)
        with_token = self._token or False
        return asked(
            lambda: get_hf_file_metadata(
                url, token=with_token, endpoint=self._endpoint, timeout=self._patience.timeout, library_name="sdconvert"
            ),
            self.place,
            self._patience,
        )


def asked(call: Any, place: HubPath, patience: Patience) -> Any:
    """What `call` gives, a call of the Hub, tried again while the trouble may pass; errors in our own words."""
    tried = 0
    while True:
        try:
            return asked_once(call, place)
        except PassingError as error:
            tried += 1
            if tried >= patience.tries:
                raise UnreadableError(f"the Hub cannot be reached: {error}. Tried {tried} times") from None
            patience.wait(tried, error.after)


def asked_once(call: Any, place: HubPath) -> Any:
    """What `call` gives, tried once: PassingError for what may go well the next time."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        return call()
    except SdconvertError:
        raise
    except errors.GatedRepoError:
        raise UnreadableError(
            f"{place.repo} is gated. Ask for access at https://huggingface.co/{place.repo}, then: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise UnreadableError(f"{place.repo} has no revision {place.revision}") from None
    except errors.RepositoryNotFoundError:
        raise UnreadableError(
            f"there is no repository {place.repo} on the Hub, or it is private: hf auth login, or set HF_TOKEN"
        ) from None
    except errors.EntryNotFoundError:
        raise NotThereError(f"{place.repo} has no file {place.path}") from None
    except errors.HfHubHTTPError as error:
        response = error.response
        if response is not None and response.status_code in (408, 429, 500, 502, 503, 504):
            raise PassingError(f"it answered {response.status_code}", response.headers.get("Retry-After")) from None
        raise UnreadableError(f"the Hub refused: {scrubbed(error)[:300]}") from None
    except (errors.OfflineModeIsEnabled, errors.HFValidationError) as error:
        raise UnreadableError(scrubbed(error)[:300]) from None
    except httpx.TransportError as error:
        raise PassingError(scrubbed(error) or type(error).__name__) from None


def _origin(url: str) -> tuple[str, str, int | None]:
    split = urlsplit(url)
    return split.scheme, (split.hostname or "").lower(), split.port or {"http": 80, "https": 443}.get(split.scheme)
