"""Over HTTP every answer is held to what was asked: the right bytes, or an error that says why not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from sdconvert.errors import UnreadableError
from sdconvert.remote import RemoteSource
from sdconvert.remote.http import Patience
from sdconvert.source import read
from tests.hub_server import Drop, Fault, FileServer, IgnoreRange, LoseReply, Slow, Status, WrongRange
from tests.remote.opened import opened_file

DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def opened(file_server: FileServer) -> Callable[[], RemoteSource]:
    file_server.files["dir/model.bin"] = DATA
    return lambda: opened_file(file_server.url("dir/model.bin") + "?key=secret")


def test_ranges_and_no_more(opened: Callable[[], RemoteSource], file_server: FileServer) -> None:
    with opened() as source:
        assert source.nbytes == len(DATA)
        assert str(source.stem) == "model"
        assert read(source, 1_000_000, 1_000_000) == DATA[1_000_000:2_000_000]
        source.check_unchanged()
    assert file_server.log.sent() == 1_000_002
    assert "secret" not in source.name


@pytest.mark.parametrize(
    "fault", [Status(500), Status(503), Status(429, {"Retry-After": "1"}), Drop(70_000), Drop(0), LoseReply()]
)
@pytest.mark.parametrize("nth", [1, 2])
def test_what_passes_is_tried_again_from_where_it_stopped(
    opened: Callable[[], RemoteSource], file_server: FileServer, fault: Fault, nth: int
) -> None:
    file_server.fail(fault, nth=nth)
    with opened() as source:
        assert read(source, 500_000, 1_000_000) == DATA[500_000:1_500_000]
    assert file_server.log.sent() < 1_000_000 + 200_000


def test_a_connection_that_drops_every_time_gets_there_in_steps(
    opened: Callable[[], RemoteSource], file_server: FileServer
) -> None:
    with opened() as source:
        file_server.fail(Drop(400_000), times=3)
        assert read(source, 500_000, 1_500_000) == DATA[500_000:2_000_000]


def test_trouble_that_does_not_pass(opened: Callable[[], RemoteSource], file_server: FileServer) -> None:
    with opened() as source:
        file_server.fail(Status(503), times=None)
        with pytest.raises(UnreadableError, match=r"byte 7: the server answered 503\. Tried 6 times"):
            source._ranges.fetch(7, memoryview(bytearray(10)))
    with pytest.raises(UnreadableError, match="Tried 6 times; try again later"):
        opened()


@pytest.mark.parametrize("said", ["\u00b2", "9" * 5000, "-1", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_wish_to_wait_that_is_no_number_of_seconds_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    Patience().wait(1, said)
    assert 0.25 <= waited[0] <= 0.5
    Patience().wait(1, "7")
    assert waited[1] == 7


@pytest.mark.parametrize("fault", [IgnoreRange(), WrongRange()])
def test_a_wrong_range_is_an_error(opened: Callable[[], RemoteSource], file_server: FileServer, fault: Fault) -> None:
    with opened() as source:
        file_server.fail(fault)
        with pytest.raises(UnreadableError, match=r"ignores Range|the server says it sent bytes 1-"):
            read(source, 1000, 1000)
        assert read(source, 1000, 1000) == DATA[1000:2000]


def test_a_server_without_ranges(opened: Callable[[], RemoteSource], file_server: FileServer) -> None:
    file_server.ranges = False
    file_server.files["dir/model.bin"] = bytes(64 << 20)
    with pytest.raises(UnreadableError, match=r"model\.bin: the server does not send parts of files .*Download"):
        opened()
    assert file_server.log.sent() < 32 << 20  # What the sockets took before the client hung up.


@pytest.mark.parametrize("other", [DATA[:-1], DATA[::-1]])
def test_a_file_that_changes(opened: Callable[[], RemoteSource], file_server: FileServer, other: bytes) -> None:
    with opened() as source:
        read(source, 1_000_000, 10)
        file_server.files["dir/model.bin"] = other
        with pytest.raises(UnreadableError, match="changed"):
            read(source, 2_000_000, 600_000)
        with pytest.raises(UnreadableError, match="changed"):
            source.check_unchanged()


def test_an_empty_file(file_server: FileServer) -> None:
    file_server.files["empty"] = b""
    assert opened_file(file_server.url("empty")).nbytes == 0


def test_a_file_that_is_not_there(file_server: FileServer) -> None:
    with pytest.raises(UnreadableError, match=r"none: cannot be fetched: the server answered 404"):
        opened_file(file_server.url("none"))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UnreadableError, match=re.escape("http://127.0.0.1:9/x: cannot be fetched")):
        opened_file("http://127.0.0.1:9/x?key=secret")


def test_silence_ends(opened: Callable[[], RemoteSource], file_server: FileServer) -> None:
    from sdconvert.remote import Patience

    with opened_file(file_server.url("dir/model.bin") if opened else "", patience=Patience(timeout=0.2)) as source:
        file_server.fail(Slow(2))
        assert read(source, 0, 10) == DATA[:10]
