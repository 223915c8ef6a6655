"""Tokens of the Hub: where they come from, and that they never get into a text."""

from __future__ import annotations

import re

from ..errors import ChoiceError

_TOKEN = re.compile(r"[\x21-\x7e]+")
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*")
_PASSWORD = re.compile(r"://[^/@\s'\"]*@")
_INSIDE = re.compile(r"hf_[A-Za-z0-9]{4,}")


def find_token(token: str | None = None) -> str | None:
    """The token to send: `token` if there is one, else that of the environment or of ``hf auth login``.

    White space around it is dropped. ChoiceError, which does not show it, if it cannot be a token: put in a
    header as it is, it would end up in the text of some library's error.
    """
    if token is None:
        from huggingface_hub import get_token

        token = get_token()
        if token is None:
            return None
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ChoiceError("the token for the Hub has characters that no token has, or none at all. Copy it again")
    return token


def scrubbed(text: object) -> str:
    """`text` on one line, with whatever looks like a token, a password in a URL or a signed URL's query taken out."""
    line = _INSIDE.sub("hf_***", " ".join(str(text).split()))
    return _QUERY.sub(r"\1", _PASSWORD.sub("://", line))
