"""Who may do what: accounts by their tokens, and the errors the Hub gives to the others."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from .store import Repo, Store
from .wire import RefusedError, Request


@dataclass(frozen=True)
class Account:
    """A user and one token of theirs; `role` is ``write`` or ``read``."""

    name: str
    role: str
    token: str

    @classmethod
    def new(cls, name: str, role: str) -> Account:
        return cls(name, role, "hf_" + secrets.token_hex(17))


class Access:
    """The accounts of a hub and its rules.

    A private repository is not there for others (404, or 401 without a token). A gated one lists its files
    to all but gives them only to its owner and to those it `allowed`. Only a write token of the owner
    commits or creates; any token opens discussions and pull requests where it may read.
    """

    def __init__(self, store: Store, accounts: list[Account]) -> None:
        self._store = store
        self._by_token = {account.token: account for account in accounts}

    def account(self, request: Request) -> Account | None:
        """Who asks; None for nobody. 401 for a token that is none."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        account = self._by_token.get(header.removeprefix("Bearer "))
        if account is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return account

    def known(self, request: Request) -> Account:
        account = self.account(request)
        if account is None:
            raise RefusedError(401, "Invalid username or password.")
        return account

    def writer(self, request: Request) -> Account:
        account = self.known(request)
        if account.role != "write":
            raise RefusedError(403, "You have read access but not the required permissions for this operation")
        return account

    def readable(self, request: Request, name: str) -> Repo:
        """A repository that may be looked at, though perhaps not its files."""
        account = self.account(request)
        repo = self._store.repos.get(name)
        if repo is None or (repo.private and (account is None or account.name != repo.owner)):
            raise RefusedError(401 if account is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def opened(self, request: Request, name: str) -> Repo:
        """A repository whose files may be read."""
        repo, account = self.readable(request, name), self.account(request)
        if repo.gated and (account is None or account.name not in {repo.owner, *repo.allowed}):
            who = "Please log in." if account is None else f"You are not in the authorized list, {account.name}."
            message = f"Access to model {name} is restricted. {who}"
            raise RefusedError(401 if account is None else 403, message, "GatedRepo")
        return repo

    def writable(self, request: Request, name: str) -> Repo:
        """A repository that may be changed."""
        repo, account = self.readable(request, name), self.writer(request)
        if account.name != repo.owner:
            raise RefusedError(403, f"You don't have the rights to change {name}. Open a pull request: create_pr=1")
        return repo

    def proposable(self, request: Request, name: str) -> Repo:
        """A repository to which a pull request may be made."""
        self.known(request)
        return self.opened(request, name)
