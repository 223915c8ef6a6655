"""A pickle by itself: ``pickle.dump`` of tensors or of numpy arrays.

A tensor carries its storage as a whole legacy file in a byte string
(``torch.storage._load_from_bytes``), an array carries its bytes; long ones are read from
where they lie.
"""

from __future__ import annotations

from ..checkpoint import Checkpoint, Value
from ..errors import UnreadableError, UnsupportedError
from ..limits import Limits
from ..pickles.machine import run
from ..pickles.nodes import Node
from ..pickles.rebuild import resolve
from ..source import Source
from ..source import read as read_bytes
from .protocol import Inner, Nested

NAME = "pickle"
_LOOKED_AT = 1 << 16  # Bytes in which joblib's own class is named, before the first array.


def sniff(head: bytes, source: Source) -> bool:
    if head[:1] == b"\x80":
        return head[1:2] <= b"\x05"
    # Protocols 0 and 1 have no header: they begin by making something and end in STOP.
    return head[:1] in (b"(", b"]", b"}", b"c") and read_bytes(source, source.nbytes - 1, 1) == b"."


def read(source: Source, nested: Nested, limits: Limits) -> Checkpoint:
    try:
        pickled = run(source, limits=limits)
    except UnreadableError as error:
        raise _joblib(source) or error from None
    if pickled.end != source.nbytes:
        raise _joblib(source) or UnreadableError(
            f"{source.nbytes - pickled.end} bytes follow the end of its pickle: more pickles, or damage"
        )
    inner = Inner(nested)
    tree, sources = resolve(pickled.root, _load, inner)
    return Checkpoint(NAME, tree, inner.beside(pickled.globals), sources=sources)


def _joblib(source: Source) -> UnsupportedError | None:
    """What to say of a file that is no pickle only because joblib put an array's bytes among the opcodes."""
    if b"joblib.numpy_pickle" not in read_bytes(source, 0, min(source.nbytes, _LOOKED_AT)):
        return None
    return UnsupportedError("it is a joblib file, which keeps its arrays between pickles. Save the weights alone")


def _load(pid: Node) -> Value:
    raise UnreadableError("its pickle refers to data outside of it, which is not there. Find the file it belonged to")
