"""The Hub as the owner of one token sees it. Calls are `huggingface_hub`'s; trouble that passes is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import OutputError, UnreadableError
from ..remote.http import Patience
from ..remote.hub import HubPath, asked
from ..remote.tokens import find_token

MAIN = "main"


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository: its bytes, the SHA-256 of an LFS file ("" for others), and git's id of it."""

    nbytes: int
    sha256: str
    git_id: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit, and for whom it is. `card` is the front matter of its README."""

    id: str
    commit: str
    private: bool
    gated: bool
    files: Mapping[str, RepoFile]
    card: Mapping[str, Any]

    @property
    def is_empty(self) -> bool:
        """Whether nobody has put anything there yet."""
        return not set(self.files) - {".gitattributes"}


class Client:
    """One user's client. Errors are UnreadableError, without the token: `publishing` makes them OutputErrors."""

    def __init__(self, token: str | None, patience: Patience | None = None) -> None:
        from huggingface_hub import HfApi, constants

        self.token = find_token(token)
        self.patience = patience or Patience()
        self.api = HfApi(endpoint=constants.ENDPOINT, token=self.token or False, library_name="sdconvert")

    def ask(self, repo: str, call: Callable[[], Any], *, revision: str = "") -> Any:
        """What a call of `api` gives; `repo` and `revision` are what it is about."""
        return asked(call, HubPath(repo, revision, ""), self.patience)

    def user(self, repo: str) -> tuple[str, frozenset[str]]:
        """The name of the token's owner, and all names under which they own repositories."""
        if self.token is None:
            raise OutputError("publishing needs a token: hf auth login, or set HF_TOKEN")
        who = self.ask(repo, self.api.whoami)
        return who["name"], frozenset([who["name"], *(one["name"] for one in who.get("orgs") or ())])

    def look(self, repo: str, revision: str = "") -> Repository | None:
        """The repository at the head of `revision`, None when there is no such repository (or not for this user)."""
        from huggingface_hub import errors

        def info() -> Any:
            try:
                return self.api.model_info(
                    repo, revision=revision or None, files_metadata=True, timeout=self.patience.timeout
                )
            except (errors.GatedRepoError, errors.RevisionNotFoundError):
                raise
            except errors.RepositoryNotFoundError:
                return None

        found = self.ask(repo, info, revision=revision)
        if found is None:
            return None
        if not found.sha:
            raise UnreadableError(f"the Hub does not say at which commit {repo} is")
        card = found.card_data.to_dict() if found.card_data else {}
        files = {one.rfilename: _file(one) for one in found.siblings or ()}
        return Repository(repo, found.sha, bool(found.private), bool(found.gated), files, card)

    def history(self, repo: str, revision: str) -> list[Any]:
        """The commits of `revision`, newest first."""
        commits: list[Any] = self.ask(
            repo, lambda: self.api.list_repo_commits(repo, revision=revision), revision=revision
        )
        return commits

    def url(self, repo: str, rest: str = "") -> str:
        """The address of a page of a repository."""
        return f"{self.api.endpoint}/{repo}{rest}"


def _file(one: Any) -> RepoFile:
    return RepoFile(one.size or 0, one.lfs.sha256 if one.lfs else "", one.blob_id or "")


@contextmanager
def publishing() -> Iterator[None]:
    """What the Hub refuses in here was to be written: it is an OutputError."""
    try:
        yield
    except UnreadableError as error:
        raise OutputError(str(error)) from None
