"""The test hub does what the real client expects of a hub, and its faults are the faults they say they are."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from tests.hub_server import HubServer

needs_xet = pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")


@pytest.mark.parametrize("mode", ["basic", "multipart", pytest.param("xet", marks=needs_xet)])
def test_the_whole_life_of_a_repository(hub: HubServer, mode: str) -> None:
    if mode == "multipart":
        hub.settings.transfer = "multipart"
    hub.settings.page = 3  # Lists come in pages.
    done = hub.run(["-m", "tests.hub_server.round_trip"], token=hub.token, xet=mode == "xet")
    assert done.returncode == 0, done.stderr
    uploaded = json.loads(done.stdout)["uploaded"]
    puts = {"basic": ("cdn.put", 2), "multipart": ("cdn.put-part", 5), "xet": ("hub.xet-write-token", 1)}
    route, least = puts[mode]
    assert hub.log.count(route) >= least
    assert hub.log.received("cdn.*") == (0 if mode == "xet" else uploaded)
