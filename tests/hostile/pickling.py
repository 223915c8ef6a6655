"""An assembler for pickles. A fragment is bytes that, when run, push one value.

Nothing here ever goes through an unpickler; the pieces are the opcodes of ``pickletools``,
spelled out, so that a case can hold what no pickler would write.
"""

from __future__ import annotations

import struct

MARKER = "PWNED"
COMMAND = f"touch {MARKER}"
CODE = f"open({MARKER!r}, 'w').close()"

MARK, STOP, EMPTY, NONE, TRUE, FALSE = b"(", b".", b")", b"N", b"\x88", b"\x89"
REDUCE, BUILD, DUP, POP, POP_MARK = b"R", b"b", b"2", b"0", b"1"


def pickled(*fragments: bytes, proto: int | None = 2) -> bytes:
    """A whole pickle of the fragments' opcodes."""
    head = b"" if proto is None else b"\x80" + bytes([proto])
    return head + b"".join(fragments) + STOP


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def short_text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def blob(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw


def real(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def literal(value: object) -> bytes:
    """A fragment for plain data; bytes are taken to be a fragment already."""
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, bool):
        return {None: NONE, True: TRUE, False: FALSE}[value]
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return real(value)
    if isinstance(value, tuple):
        return tuple_of(*value)
    if isinstance(value, list):
        return list_of(*value)
    assert isinstance(value, dict)
    return dict_of(*value.items())


def tuple_of(*parts: object) -> bytes:
    return MARK + b"".join(map(literal, parts)) + b"t" if parts else EMPTY


def list_of(*parts: object) -> bytes:
    return b"](" + b"".join(map(literal, parts)) + b"e"


def dict_of(*pairs: tuple[object, object]) -> bytes:
    return b"}(" + b"".join(literal(key) + literal(value) for key, value in pairs) + b"u"


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)


def name(full: str) -> bytes:
    """GLOBAL of ``module.name``."""
    module, _, last = full.rpartition(".")
    return b"c" + module.encode() + b"\n" + last.encode() + b"\n"


def call(func: str | bytes, *args: object) -> bytes:
    """REDUCE."""
    return (name(func) if isinstance(func, str) else func) + tuple_of(*args) + REDUCE


def new(func: str, *args: object) -> bytes:
    return name(func) + tuple_of(*args) + b"\x81"


def persistent(*parts: object) -> bytes:
    return tuple_of(*parts) + b"Q"


def storage(
    key: object = "0", numel: object = 4, kind: object = "torch.FloatStorage", location: object = "cpu"
) -> bytes:
    cls = name(kind) if isinstance(kind, str) else literal(kind)
    return persistent("storage", cls, key, location, numel)


def tensor(
    size: object = (4,),
    stride: object = (1,),
    *,
    offset: object = 0,
    of: bytes | None = None,
    hooks: object = None,
    grad: object = False,
    metadata: object = None,
    **about: object,
) -> bytes:
    """``_rebuild_tensor_v2`` over `of`, or over the storage that `about` describes."""
    inner = of if of is not None else storage(**about)
    more = () if metadata is None else (metadata,)
    hooks = call("collections.OrderedDict") if hooks is None else hooks
    return call("torch._utils._rebuild_tensor_v2", inner, offset, size, stride, grad, hooks, *more)


def module(
    cls: str = "torch.nn.modules.linear.Linear", parameters: object = None, children: object = None, **more: object
) -> bytes:
    """A pickled ``torch.nn.Module``."""
    state: dict[str, object] = {"_parameters": parameters or {}, "_buffers": {}, "_modules": children or {}, **more}
    return new(cls) + literal(state) + BUILD


def frame(body: bytes, claim: int | None = None) -> bytes:
    return b"\x95" + struct.pack("<Q", len(body) if claim is None else claim) + body


def torch_names() -> tuple[str, ...]:
    """Names that look like code and are only names."""
    return (
        "os.system",
        "__reduce__",
        "__class__.__init__",
        "builtins.eval",
        "{0.__globals__}",
        "%s%n",
        "$(touch PWNED)",
    )
