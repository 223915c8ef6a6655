"""The fixtures, and a check of all output for tokens; tests/conftest.py hands them to every test."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from . import FileServer, HubServer


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A running hub, empty. At its end: it had no error of its own, and no token went to the CDN.

    A test in whose output, log or error one of its tokens is found fails.
    """
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server
        server.assert_healthy()


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    """A running server of plain files, empty."""
    with FileServer() as server:
        yield server
        assert server.log.broken == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    arguments: dict[str, Any] = getattr(item, "funcargs", {})
    for server in arguments.values():
        if isinstance(server, HubServer):
            text = "\n".join([report.longreprtext, *(content for _, content in report.sections)])
            if any(token in text for token in server.tokens):
                report.outcome = "failed"
                report.sections = []
                report.longrepr = f"{item.nodeid}: a token of the hub is in what this test printed, logged or raised"
    return report
