"""Every fault is what it says it is, on the call it was meant for and on no other."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest
from huggingface_hub import CommitOperationAdd, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from tests.hub_server import (
    Drop,
    FileServer,
    HubServer,
    IgnoreRange,
    LoseReply,
    Slow,
    Status,
    WrongBytes,
    WrongRange,
)

DATA = bytes(range(256)) * 400


def get(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Status, headers (in small letters) and body, by a client that does nothing on its own."""
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port or 80, timeout=10)
    try:
        connection.request(method, f"{split.path}?{split.query}", headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.fixture
def location(hub: HubServer) -> str:
    """The signed URL of a file of 102,400 bytes."""
    hub.add_repo("me/model", {"model.bin": DATA, "a.txt": b"a"})
    url = hf_hub_url("me/model", "model.bin", endpoint=hub.endpoint)
    return get_hf_file_metadata(url, token=False).location


class TestRanges:
    def test_a_range(self, hub: HubServer, location: str) -> None:
        status, headers, body = get(location, {"Range": "bytes=1000-1999"})
        assert (status, headers["content-range"], body) == (206, "bytes 1000-1999/102400", DATA[1000:2000])
        assert (hub.log.count("cdn.get"), hub.log.sent("cdn.get")) == (1, 1000)

    @pytest.mark.parametrize(
        ("asked", "begin", "end"),
        [("102000-", 102000, 102400), ("-100", 102300, 102400), ("102399-999999", 102399, 102400)],
    )
    def test_at_the_end(self, location: str, asked: str, begin: int, end: int) -> None:
        status, headers, body = get(location, {"Range": f"bytes={asked}"})
        assert (status, headers["content-range"], body) == (206, f"bytes {begin}-{end - 1}/102400", DATA[begin:end])

    def test_past_the_end(self, location: str) -> None:
        status, headers, body = get(location, {"Range": "bytes=102400-"})
        assert (status, headers["content-range"], body) == (416, "bytes */102400", b"")

    def test_head_sends_no_body(self, hub: HubServer, location: str) -> None:
        status, headers, body = get(location, method="HEAD")
        assert (status, headers["content-length"], body) == (200, "102400", b"")
        assert hub.log.sent("cdn.get") == 0

    def test_small_files_come_from_the_hub_with_ranges_too(self, hub: HubServer) -> None:
        hub.add_repo("me/model", {"a.txt": b"0123456789"})
        status, _, body = get(f"{hub.endpoint}/me/model/resolve/main/a.txt", {"Range": "bytes=2-4"})
        assert (status, body) == (206, b"234")


class TestSignedUrls:
    def test_the_wrong_signature(self, location: str) -> None:
        assert get(re.sub(r"Expires=\d+", "Expires=9999999999", location))[0] == 403
        assert get(location.partition("?")[0])[0] == 403

    def test_all_expire_at_once(self, hub: HubServer, location: str) -> None:
        hub.expire_urls()
        assert get(location)[0] == 403
        url = hf_hub_url("me/model", "model.bin", endpoint=hub.endpoint)
        assert get(get_hf_file_metadata(url, token=False).location)[0] == 200

    def test_each_expires_in_time(self, hub: HubServer) -> None:
        hub.settings.url_seconds = 0.05
        hub.add_repo("me/model", {"model.bin": DATA})
        url = hf_hub_url("me/model", "model.bin", endpoint=hub.endpoint)
        location = get_hf_file_metadata(url, token=False).location
        time.sleep(0.1)
        assert get(location)[0] == 403

    def test_a_token_is_refused_and_noticed(self, hub: HubServer, location: str) -> None:
        assert get(location, {"Authorization": f"Bearer {hub.token}"})[0] == 400
        with pytest.raises(AssertionError, match=r"a token went to the CDN: .*/blob/"):
            hub.assert_healthy()
        hub.log.clear()


class TestFaultsOfReading:
    def test_a_status_on_the_second_call_only(self, hub: HubServer, location: str) -> None:
        hub.fail("cdn.get", Status(503, {"Retry-After": "7"}), nth=2)
        answers = [get(location) for _ in range(3)]
        assert [answer[0] for answer in answers] == [200, 503, 200]
        assert answers[1][1]["retry-after"] == "7"

    def test_a_status_on_the_nth_call_of_any_kind(self, hub: HubServer, location: str) -> None:
        hub.fail("*", Status(500), nth=2, times=2)
        urls = [location, f"{hub.endpoint}/api/models/me/model", location, location]
        assert [get(url)[0] for url in urls] == [200, 500, 500, 200]

    def test_a_status_for_ever(self, hub: HubServer, location: str) -> None:
        hub.fail("cdn.*", Status(500), times=None)
        assert {get(location)[0] for _ in range(5)} == {500}
        hub.rules.clear()
        assert get(location)[0] == 200

    def test_a_connection_dropped_in_the_middle_of_a_range(self, hub: HubServer, location: str) -> None:
        hub.fail("cdn.get", Drop(300))
        with pytest.raises(http.client.IncompleteRead) as caught:
            get(location, {"Range": "bytes=1000-1999"})
        assert caught.value.partial == DATA[1000:1300]
        assert hub.log.sent("cdn.get") == 300

    def test_range_ignored(self, hub: HubServer, location: str) -> None:
        hub.fail("cdn.get", IgnoreRange())
        status, headers, body = get(location, {"Range": "bytes=1000-1999"})
        assert (status, body, "content-range" in headers) == (200, DATA, False)

    def test_another_range(self, hub: HubServer, location: str) -> None:
        hub.fail("cdn.get", WrongRange())
        status, headers, _ = get(location, {"Range": "bytes=1000-1999"})
        assert (status, headers["content-range"]) == (206, "bytes 1-1000/102400")

    def test_wrong_bytes(self, hub: HubServer, location: str) -> None:
        hub.fail("cdn.get", WrongBytes())
        status, headers, body = get(location, {"Range": "bytes=1000-1999"})
        assert (status, headers["content-range"]) == (206, "bytes 1000-1999/102400")
        assert all(one != other for one, other in zip(body, DATA[1000:2000], strict=True))

    def test_late(self, hub: HubServer, location: str) -> None:
        hub.fail("cdn.get", Slow(0.2))
        start = time.monotonic()
        assert get(location)[0] == 200
        assert time.monotonic() - start >= 0.2


def commit(hub: HubServer, *, create_pr: bool = False) -> None:
    add = CommitOperationAdd("b.txt", b"b")
    hub.api(hub.token).create_commit("me/model", [add], commit_message="b", create_pr=create_pr)


class TestFaultsOfWriting:
    @pytest.fixture(autouse=True)
    def _model(self, hub: HubServer) -> None:
        hub.add_repo("me/model", {"a.txt": b"a"})

    def test_a_failed_commit_has_no_effect(self, hub: HubServer) -> None:
        hub.fail("hub.commit", Status(500))
        with pytest.raises(HfHubHTTPError, match="500"):
            commit(hub, create_pr=True)
        assert list(hub.api().get_repo_discussions("me/model")) == []

    def test_a_lost_reply_has_its_effect(self, hub: HubServer) -> None:
        hub.fail("hub.commit", LoseReply())
        with pytest.raises(httpx.RemoteProtocolError):
            commit(hub, create_pr=True)
        assert [one.title for one in hub.api().get_repo_discussions("me/model")] == ["b"]
        assert hub.paths("me/model", "refs/pr/1") == ["a.txt", "b.txt"]
        assert [entry.status for entry in hub.log.entries("hub.commit")] == [0]

    def test_what_the_client_retries_goes_well_at_the_second_time(self, hub: HubServer) -> None:
        hub.fail("hub.preupload", Status(503))
        commit(hub)
        assert [entry.status for entry in hub.log.entries("hub.preupload")] == [503, 200]
        assert hub.paths("me/model") == ["a.txt", "b.txt"]


class TestPlainFiles:
    def test_with_ranges(self, file_server: FileServer) -> None:
        file_server.files["dir/a.bin"] = DATA
        status, headers, body = get(file_server.url("dir/a.bin"), {"Range": "bytes=5-9"})
        assert (status, body, headers["accept-ranges"]) == (206, DATA[5:10], "bytes")
        assert {"etag", "last-modified"} <= headers.keys()
        assert file_server.log.sent() == 5

    def test_without_ranges(self, file_server: FileServer) -> None:
        file_server.files["a.bin"] = DATA
        file_server.ranges = file_server.etags = False
        status, headers, body = get(file_server.url("a.bin"), {"Range": "bytes=5-9"})
        assert (status, body) == (200, DATA)
        assert not {"accept-ranges", "etag", "last-modified"} & headers.keys()

    def test_a_changed_file_has_another_etag(self, file_server: FileServer) -> None:
        tags = set()
        for data in (b"one", b"two"):
            file_server.files["a.bin"] = data
            tags.add(get(file_server.url("a.bin"), method="HEAD")[1]["etag"])
        assert len(tags) == 2

    def test_its_faults(self, file_server: FileServer) -> None:
        file_server.files["a.bin"] = DATA
        file_server.fail(Status(500), nth=2)
        assert [get(file_server.url(path))[0] for path in ("a.bin", "a.bin", "a.bin", "none")] == [200, 500, 200, 404]
