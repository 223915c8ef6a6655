"""One table of element types: torch's name, bytes, safetensors' code, storage class.

Sources: safetensors' ``Dtype`` enum (the code names and the order in which its writer
lays tensors out) and torch's ``torch/storage.py`` (which storage class holds which dtype).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """An element type. Two DTypes are equal when their names are.

    `name` is torch's (``bfloat16``), `itemsize` bytes per element as torch stores them,
    `code` safetensors' name or None when it has no equivalent, `swap` the bytes of one
    byte-order unit (half an element for complex numbers), `kind` one of
    ``f`` float, ``c`` complex, ``i`` signed, ``u`` unsigned, ``b`` bool, ``q`` quantized, ``x`` opaque bits.
    """

    name: str
    itemsize: int
    code: str | None
    kind: str
    swap: int
    packed: int = 1
    """Elements per stored item: 2 for ``float4_e2m1fn_x2``, whose last dimension doubles in safetensors."""
    stand_in: str | None = None
    """What holds the same bytes where safetensors has no such type: halves of complex numbers, which then
    are a last dimension of 2 (``torch.view_as_real``), or whole elements of opaque bits."""


def _row(name: str, itemsize: int, code: str | None, kind: str, packed: int = 1, stand_in: str | None = None) -> DType:
    return DType(name, itemsize, code, kind, itemsize // 2 if kind == "c" else itemsize, packed, stand_in)


# In the order in which safetensors' own writer lays tensors out: by alignment, then its enum, backwards.
_ROWS = (
    _row("uint64", 8, "U64", "u"),
    _row("int64", 8, "I64", "i"),
    _row("float64", 8, "F64", "f"),
    _row("complex64", 8, "C64", "c"),
    _row("float32", 4, "F32", "f"),
    _row("uint32", 4, "U32", "u"),
    _row("int32", 4, "I32", "i"),
    _row("bfloat16", 2, "BF16", "f"),
    _row("float16", 2, "F16", "f"),
    _row("uint16", 2, "U16", "u"),
    _row("int16", 2, "I16", "i"),
    _row("float8_e5m2fnuz", 1, "F8_E5M2FNUZ", "f"),
    _row("float8_e4m3fnuz", 1, "F8_E4M3FNUZ", "f"),
    _row("float8_e8m0fnu", 1, "F8_E8M0", "f"),
    _row("float8_e4m3fn", 1, "F8_E4M3", "f"),
    _row("float8_e5m2", 1, "F8_E5M2", "f"),
    _row("int8", 1, "I8", "i"),
    _row("uint8", 1, "U8", "u"),
    _row("float4_e2m1fn_x2", 1, "F4", "f", packed=2),
    _row("bool", 1, "BOOL", "b"),
    # No safetensors equivalent.
    _row("complex128", 16, None, "c", stand_in="float64"),
    _row("complex32", 4, None, "c", stand_in="float16"),
    _row("qint8", 1, None, "q"),
    _row("quint8", 1, None, "q"),
    _row("qint32", 4, None, "q"),
    _row("quint4x2", 1, None, "q"),
    _row("quint2x4", 1, None, "q"),
    _row("bits8", 1, None, "x", stand_in="uint8"),
    _row("bits16", 2, None, "x", stand_in="uint16"),
    _row("bits1x8", 1, None, "x", stand_in="uint8"),
    _row("bits2x4", 1, None, "x", stand_in="uint8"),
    _row("bits4x2", 1, None, "x", stand_in="uint8"),
)

BY_NAME: dict[str, DType] = {row.name: row for row in _ROWS}
BY_CODE: dict[str, DType] = {row.code: row for row in _ROWS if row.code is not None}
LAYOUT_RANK: dict[str, int] = {row.name: rank for rank, row in enumerate(_ROWS)}

# torch also answers to these names of the same types.
_ALIASES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "chalf": "complex32",
    "cfloat": "complex64",
    "cdouble": "complex128",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
}

# `torch.<X>Storage`; an untyped storage counts bytes and leaves the dtype to the tensor.
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "QInt8": "qint8",
    "QUInt8": "quint8",
    "QInt32": "qint32",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
}
BY_STORAGE: dict[str, DType] = {f"{x}Storage": BY_NAME[name] for x, name in _STORAGES.items()}
BY_TENSOR_TYPE: dict[str, DType] = {f"{x}Tensor": BY_NAME[name] for x, name in _STORAGES.items()}

# numpy's type characters with their sizes; its byte order is a separate mark.
BY_NUMPY: dict[str, DType] = {
    "f8": BY_NAME["float64"],
    "f4": BY_NAME["float32"],
    "f2": BY_NAME["float16"],
    "i8": BY_NAME["int64"],
    "i4": BY_NAME["int32"],
    "i2": BY_NAME["int16"],
    "i1": BY_NAME["int8"],
    "u8": BY_NAME["uint64"],
    "u4": BY_NAME["uint32"],
    "u2": BY_NAME["uint16"],
    "u1": BY_NAME["uint8"],
    "b1": BY_NAME["bool"],
    "c16": BY_NAME["complex128"],
    "c8": BY_NAME["complex64"],
}


def by_name(name: str) -> DType | None:
    """The dtype that torch calls `name`, short names such as ``half`` and ``bf16`` included."""
    return BY_NAME.get(_ALIASES.get(name, name))
