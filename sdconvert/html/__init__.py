"""An inspection as a page for a browser.

The page is one file that needs nothing else: ``page.html`` with the style, the script, the
chart library (d3-hierarchy, which lays out the treemap) and the data in it. The data are the
same document that ``inspect --json`` prints. They stand in a block that is never run, and a
policy in the page lets only the two scripts run whose hashes it names, and nothing be fetched.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from ..errors import printable

if TYPE_CHECKING:
    from ..inspection import Inspection


def page(inspection: Inspection) -> str:
    """The whole page, for a file."""
    licence = _file("LICENSE.d3-hierarchy").replace("*/", "* /")
    chart = f"/*\n{licence}*/\n{_file('d3-hierarchy.min.js')}"
    style, script = _file("page.css"), _file("page.js")
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_hash(style)}; " + (
        f"script-src {_hash(chart)} {_hash(script)}"
    )
    parts = {
        "policy": policy,
        "title": escape(printable(inspection.source)),
        "text": escape(inspection.to_text(width=100)),
        "style": style,
        "chart": chart,
        "script": script,
        # No "<" at all, so no name can end the block or begin a comment. json escapes all that is not ASCII.
        "data": json.dumps(inspection.to_json(), separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one pass: what was put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("page.html"))


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """`text` as a content security policy names it."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
