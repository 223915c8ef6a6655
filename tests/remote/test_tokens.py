"""A token is sent as it should be, or refused; and no text shows one."""

from __future__ import annotations

import pytest

from sdconvert.errors import ChoiceError
from sdconvert.remote.tokens import find_token, scrubbed


def test_white_space_around_it_is_dropped() -> None:
    assert find_token(" hf_abc\r\n") == "hf_abc"


def test_it_comes_from_the_environment_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_token() is None
    monkeypatch.setenv("HF_TOKEN", "hf_abc\n")
    assert find_token() == "hf_abc"
    assert find_token("hf_other") == "hf_other"


@pytest.mark.parametrize("token", ["", "  ", "hf_abc\nX-Header: 1", "hf_ä", "hf_a b"])
def test_what_cannot_be_one_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ChoiceError, match="characters that no token has, or none at all") as caught:
        find_token(token)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer hf_AbCd1234 refused", "Bearer hf_*** refused"),
        ("GET https://cdn/x?Signature=abc&Expires=1 failed", "GET https://cdn/x failed"),
        ("'https://cdn/x?Signature=abc'", "'https://cdn/x'"),
        ("https://user:secret@host/file", "https://host/file"),
        ("hf://me/model@main/a.bin", "hf://me/model@main/a.bin"),
        ("two\nlines", "two lines"),
    ],
)
def test_what_a_message_shows(text: str, shown: str) -> None:
    assert scrubbed(text) == shown
