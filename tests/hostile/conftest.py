"""What the hostile tests run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .running import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The process that forks one for each command, for all tests of a worker."""
    server = Server()
    yield server
    server.close()
