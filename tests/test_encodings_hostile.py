"""Encoded tensors that lie: in a pickle, in the metadata of a safetensors file, in a call of `decode`.

Every claim of a recipe is held against its parts, and every index against what it points into, before
torch is handed any of it. Each refusal is one line, and leaves nothing behind.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import sdconvert
from sdconvert import Limits, TensorRef
from sdconvert.dtypes import BY_NAME
from sdconvert.load.decode import decode
from sdconvert.recipes import restored, spread, to_text
from sdconvert.source import MemorySource
from sdconvert.tensor import Storage, contiguous_strides, strided
from tests.outputs import raw
from tests.test_encodings import saved, tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Made:
    """Pickled as a call of `function` with any arguments, which need not make sense."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.made = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.made


U = torch._utils
AFFINE, CHANNEL = torch.per_tensor_affine, torch.per_channel_affine
SIZE = torch.Size


def storage(count: int = 6, dtype: torch.dtype = torch.qint8) -> Any:
    size = {torch.qint8: 1, torch.quint4x2: 1, torch.qint32: 4, torch.float32: 4}[dtype]
    return torch.storage.TypedStorage(
        wrap_storage=torch.zeros(count * size, dtype=torch.uint8).untyped_storage(), dtype=dtype, _internal=True
    )


def q(**change: Any) -> Made:
    given: dict[str, Any] = {
        "storage": storage(),
        "offset": 0,
        "size": (2, 3),
        "stride": (3, 1),
        "quantizer": (AFFINE, 0.5, 3),
        "grad": False,
        "hooks": OrderedDict(),
    }
    return Made(U._rebuild_qtensor, *(given | change).values())


def per_channel(scales: Any, zeros: Any, axis: Any) -> Made:
    return q(quantizer=(CHANNEL, scales, zeros, axis))


D, L, F = torch.float64, torch.int64, torch.float32
QUANTIZED = {
    "few arguments": Made(U._rebuild_qtensor, storage(), 0, (2, 3)),
    "many arguments": q(more=1),
    "a float storage": q(storage=storage(6, F)),
    "no storage": q(storage="0"),
    "offset past the end": q(offset=1),
    "negative offset": q(offset=-1),
    "size past the end": q(size=(3, 3)),
    "huge size": q(size=(1 << 62, 1 << 62), stride=(0, 0)),
    "size of text": q(size=("2", 3)),
    "size of bools": q(size=(True, True)),
    "strides of another length": q(stride=(1,)),
    "negative stride": q(stride=(-3, 1)),
    "no quantizer": q(quantizer=()),
    "quantizer of text": q(quantizer="per_tensor_affine"),
    "scheme unknown": q(quantizer=(torch.float32, 0.5, 3)),
    "scheme symmetric": q(quantizer=(torch.per_tensor_symmetric, 0.5, 3)),
    "scale missing": q(quantizer=(AFFINE, 0.5)),
    "scale of text": q(quantizer=(AFFINE, "0.5", 3)),
    "scale infinite": q(quantizer=(AFFINE, float("inf"), 3)),
    "scale NaN": q(quantizer=(AFFINE, float("nan"), 3)),
    "zero point a float": q(quantizer=(AFFINE, 0.5, 3.0)),
    "zero point a bool": q(quantizer=(AFFINE, 0.5, True)),
    "zero point too large": q(quantizer=(AFFINE, 0.5, 1 << 63)),
    "axis outside": per_channel(torch.ones(2, dtype=D), torch.zeros(2, dtype=L), 2),
    "axis negative": per_channel(torch.ones(2, dtype=D), torch.zeros(2, dtype=L), -1),
    "axis of text": per_channel(torch.ones(2, dtype=D), torch.zeros(2, dtype=L), "0"),
    "too few scales": per_channel(torch.ones(1, dtype=D), torch.zeros(2, dtype=L), 0),
    "too many zero points": per_channel(torch.ones(2, dtype=D), torch.zeros(3, dtype=L), 0),
    "scales of two dimensions": per_channel(torch.ones(2, 1, dtype=D), torch.zeros(2, dtype=L), 0),
    "scales of integers": per_channel(torch.ones(2, dtype=L), torch.zeros(2, dtype=L), 0),
    "zero points of halves": per_channel(torch.ones(2, dtype=D), torch.zeros(2, dtype=torch.float16), 0),
    "scales no tensor": per_channel("scales", torch.zeros(2, dtype=L), 0),
    "scales a list of text": per_channel(["a", "b"], [0, 0], 0),
    "zero points a list of floats": per_channel([0.5, 0.5], [0.5, 0.5], 0),
    "four bits, too few bytes": q(storage=storage(3, torch.quint4x2)),
    "state after it": Made(U._rebuild_qtensor, *q().made[1], state={"a": 1}),
}


def sparse(layout: Any, *data: Any) -> Made:
    return Made(U._rebuild_sparse_tensor, layout, data)


I2, V2 = torch.tensor([[0, 1], [1, 0]]), torch.ones(2)
R, C = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
COO, CSR, BSR = torch.sparse_coo, torch.sparse_csr, torch.sparse_bsr
SPARSE = {
    "one argument": Made(U._rebuild_sparse_tensor, COO),
    "three arguments": Made(U._rebuild_sparse_tensor, COO, (I2, V2, SIZE((2, 2))), 1),
    "data a list": Made(U._rebuild_sparse_tensor, COO, [I2, V2, SIZE((2, 2)), False]),
    "too little data": sparse(COO, I2, V2),
    "too much data": sparse(COO, I2, V2, SIZE((2, 2)), False, 1),
    "layout strided": sparse(torch.strided, I2, V2, SIZE((2, 2)), False),
    "layout of text": sparse("sparse_coo", I2, V2, SIZE((2, 2)), False),
    "layout a number": sparse(99, I2, V2, SIZE((2, 2)), False),
    "indices no tensor": sparse(COO, [[0, 1], [1, 0]], V2, SIZE((2, 2)), False),
    "indices of int32": sparse(COO, I2.int(), V2, SIZE((2, 2)), False),
    "indices flat": sparse(COO, I2[0], V2, SIZE((2, 2)), False),
    "more values than indices": sparse(COO, I2, torch.ones(3), SIZE((2, 2)), False),
    "fewer dimensions than indices": sparse(COO, I2, V2, SIZE((2,)), False),
    "dense dimensions missing": sparse(COO, I2, V2, SIZE((2, 2, 2)), False),
    "size negative": sparse(COO, I2, V2, SIZE((2, -2)), False),
    "size of text": sparse(COO, I2, V2, ("2", 2), False),
    "size no tuple": sparse(COO, I2, V2, 4, False),
    "coalesced a number": sparse(COO, I2, V2, SIZE((2, 2)), 1),
    "coalesced of text": sparse(COO, I2, V2, SIZE((2, 2)), "yes"),
    "csr without values": sparse(CSR, R, C, SIZE((2, 2))),
    "csr rows too few": sparse(CSR, R[:2], C, V2, SIZE((2, 2))),
    "csr columns too few": sparse(CSR, R, C[:1], V2, SIZE((2, 2))),
    "csr indices of two types": sparse(CSR, R.int(), C, V2, SIZE((2, 2))),
    "csr of one dimension": sparse(CSR, R, C, V2, SIZE((2,))),
    "csr scalar rows": sparse(CSR, R[0], C, V2, SIZE((2, 2))),
    "bsr without blocks": sparse(BSR, R, C, V2, SIZE((2, 2))),
    "bsr blocks that do not fill": sparse(BSR, R, C, torch.ones(2, 2, 2), SIZE((3, 4))),
    "bsr blocks of nothing": sparse(BSR, R, C, torch.ones(2, 0, 2), SIZE((0, 4))),
    "state after it": Made(U._rebuild_sparse_tensor, COO, (I2, V2, SIZE((2, 2)), False), state=(1, 2)),
}

T = torch.tensor([[2, 2]])
NESTED = {
    "three arguments": Made(U._rebuild_nested_tensor, torch.ones(4), T, T),
    "buffer of two dimensions": Made(U._rebuild_nested_tensor, torch.ones(2, 2), T, T, torch.tensor([0])),
    "sizes flat": Made(U._rebuild_nested_tensor, torch.ones(4), T[0], T, torch.tensor([0])),
    "sizes of floats": Made(U._rebuild_nested_tensor, torch.ones(4), T.float(), T, torch.tensor([0])),
    "strides of another shape": Made(U._rebuild_nested_tensor, torch.ones(4), T, T[:, :1], torch.tensor([0])),
    "too many offsets": Made(U._rebuild_nested_tensor, torch.ones(4), T, T, torch.tensor([0, 1])),
    "offsets a list of text": Made(U._rebuild_nested_tensor, torch.ones(4), T, T, ["0"]),
}

WRAP = U._rebuild_wrapper_subclass
STRIDED, CPU = torch.strided, torch.device("cpu")


def wrapped(*args: Any, state: Any = None) -> Made:
    return Made(torch._tensor._rebuild_from_type_v2, WRAP, torch.Tensor, args, state)


W = (torch.Tensor, F, (2,), (1,), 0, STRIDED, CPU, False)
SUBCLASS = {
    "few arguments": wrapped(*W[:5], state={"a": V2}),
    "class of text": wrapped("torch.Tensor", *W[1:], state={"a": V2}),
    "dtype of text": wrapped(W[0], "float32", *W[2:], state={"a": V2}),
    "size of text": wrapped(*W[:2], ("2",), *W[3:], state={"a": V2}),
    "size negative": wrapped(*W[:2], (-2,), *W[3:], state={"a": V2}),
    "strides too many": wrapped(*W[:3], (1, 1), *W[4:], state={"a": V2}),
    "arguments no tuple": Made(torch._tensor._rebuild_from_type_v2, WRAP, torch.Tensor, None, {"a": V2}),
    "no tensors": wrapped(*W, state={"a": 1}),
    "no state": wrapped(*W),
    "without a type": Made(WRAP, *W),
    "deep": wrapped(*W, state={"a": [[[[[[[[[[[[[[[[[[[[V2]]]]]]]]]]]]]]]]]]]]}),
}

PICKLES = {
    f"{group}: {name}": made
    for group, cases in (("quantized", QUANTIZED), ("sparse", SPARSE), ("nested", NESTED), ("subclass", SUBCLASS))
    for name, made in cases.items()
}


def refused(source: Path, directory: Path) -> str:
    before = sorted(path.name for path in directory.iterdir())
    with pytest.raises(sdconvert.SdconvertError) as caught:
        sdconvert.convert(source, directory / "o.safetensors")
    assert isinstance(caught.value, sdconvert.UnreadableError | sdconvert.UnsupportedError)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in directory.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_that_lies_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    source = saved({"x.w": PICKLES[case], "x.v": torch.ones(1)}, tmp_path / "m.pt")
    assert "m.pt" in refused(source, tmp_path)


def test_scales_as_lists_are_what_old_torch_wrote(tmp_path: Path) -> None:
    source = saved({"x.w": per_channel([0.5, 0.25], [0, 1], 0)}, tmp_path / "m.pt")
    sdconvert.convert(source, tmp_path / "o.safetensors")
    found = tensors(tmp_path / "o.safetensors")["x.w"]
    assert found.q_per_channel_scales().tolist() == [0.5, 0.25]


def test_coo_without_a_word_on_coalescing_is_what_old_torch_wrote(tmp_path: Path) -> None:
    source = saved({"x.w": sparse(COO, I2, V2, SIZE((2, 2)))}, tmp_path / "m.pt")
    sdconvert.convert(source, tmp_path / "o.safetensors")
    assert not tensors(tmp_path / "o.safetensors")["x.w"].is_coalesced()


# Indices that point outside: the recipe and the shapes are sound, so only who makes the tensor can see it.

OUTSIDE = {
    "coo": sparse(COO, I2 + 1, V2, SIZE((2, 2)), False),
    "coo negative": sparse(COO, I2 - 1, V2, SIZE((2, 2)), False),
    "coo not coalesced as it says": sparse(COO, I2.flip(1), V2, SIZE((2, 2)), True),
    "csr column": sparse(CSR, R, C + 1, V2, SIZE((2, 2))),
    "csr negative column": sparse(CSR, R, C - 1, V2, SIZE((2, 2))),
    "csr rows down": sparse(CSR, torch.tensor([0, 3, 2]), C, V2, SIZE((2, 2))),
    "csr rows past the end": sparse(CSR, torch.tensor([0, 1, 3]), C, V2, SIZE((2, 2))),
    "csr rows not from 0": sparse(CSR, torch.tensor([1, 1, 2]), C, V2, SIZE((2, 2))),
    "bsr column": sparse(BSR, R, C, torch.ones(2, 2, 2), SIZE((4, 2))),
    "nested size": Made(U._rebuild_nested_tensor, torch.ones(4), T * 2, T, torch.tensor([0])),
    "nested offset": Made(U._rebuild_nested_tensor, torch.ones(4), T, torch.tensor([[2, 1]]), torch.tensor([1])),
    "nested negative": Made(U._rebuild_nested_tensor, torch.ones(4), T, torch.tensor([[2, -1]]), torch.tensor([2])),
    "nested huge": Made(U._rebuild_nested_tensor, torch.ones(4), T << 60, T, torch.tensor([0])),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_indices_that_point_outside_never_reach_torch(case: str, tmp_path: Path) -> None:
    source = saved({"x.w": OUTSIDE[case]}, tmp_path / "m.pt")
    sdconvert.convert(source, tmp_path / "o.safetensors")
    with pytest.raises(sdconvert.UnreadableError):
        tensors(tmp_path / "o.safetensors")


# The metadata of a safetensors file

PARTS = {
    "x.w.int_repr": torch.arange(6, dtype=torch.int8).reshape(2, 3),
    "x.v": torch.ones(3),
    "x.c": torch.ones(3, 2, dtype=D),
}
RECIPE: dict[str, Any] = {
    "encoding": "quantized",
    "dtype": "qint8",
    "shape": [2, 3],
    "scheme": "per_tensor_affine",
    "scale": 0.5,
    "zero_point": 0,
}
GOOD: dict[str, Any] = {
    "version": 1,
    "tensors": {
        "x.w": {"recipe": RECIPE, "parts": {"int_repr": "x.w.int_repr"}},
        "x.c": {"recipe": {"encoding": "complex", "dtype": "complex128", "shape": [3]}, "parts": {"pairs": "x.c"}},
    },
}


def changed(*path: str, to: Any) -> str:
    document = copy.deepcopy(GOOD)
    *way, last = path
    node: Any = document
    for step in way:
        node = node[step]
    if to is None:
        del node[last]
    else:
        node[last] = to
    return json.dumps(document)


X, ONE = ("tensors", "x.w"), {"recipe": RECIPE, "parts": {"int_repr": "x.w.int_repr"}}
TEXTS = {
    "empty": "",
    "not JSON": "{",
    "an array": "[]",
    "a number": "1",
    "NaN": changed(*X, "recipe", "scale", to=float("nan")),
    "a name twice": json.dumps(GOOD).replace('"x.c"', '"x.w"', 1),
    "no version": changed("version", to=None),
    "version 2": changed("version", to=2),
    "version of text": changed("version", to="1"),
    "version true": changed("version", to=True),
    "no tensors": changed("tensors", to=None),
    "tensors a list": changed("tensors", to=[]),
    "another key": changed("more", to=1),
    "deep": '{"version":1,"tensors":' + "[" * 50_000 + "]" * 50_000 + "}",
    "huge": json.dumps(GOOD | {"tensors": {"x" * 200_000: ONE}}),
    "half a surrogate": changed("tensors", "\ud800", to=ONE),
    "entry a list": changed(*X, to=[]),
    "entry with more": changed(*X, "more", to=1),
    "no parts": changed(*X, "parts", to={}),
    "parts a list": changed(*X, "parts", to=["x.w.int_repr"]),
    "recipe a list": changed(*X, "recipe", to=[]),
    "part that is not there": changed(*X, "parts", "int_repr", to="x.w.values"),
    "part a number": changed(*X, "parts", "int_repr", to=1),
    "part of two": changed("tensors", "x.z", to=ONE),
    "part twice": changed(*X, "parts", to={"int_repr": "x.w.int_repr", "scales": "x.w.int_repr"}),
    "name of another tensor": json.dumps({"version": 1, "tensors": {"x.v": ONE}}),
    "unknown encoding": changed(*X, "recipe", "encoding", to="base64"),
    "encoding a list": changed(*X, "recipe", "encoding", to=["quantized"]),
    "another role": changed(*X, "parts", to={"values": "x.w.int_repr"}),
    "another dtype": changed(*X, "recipe", "dtype", to="quint8"),
    "dtype not quantized": changed(*X, "recipe", "dtype", to="int8"),
    "dtype unknown": changed(*X, "recipe", "dtype", to="int7"),
    "dtype missing": changed(*X, "recipe", "dtype", to=None),
    "shape of another size": changed(*X, "recipe", "shape", to=[6]),
    "shape huge": changed(*X, "recipe", "shape", to=[1 << 62] * 60),
    "shape of floats": changed(*X, "recipe", "shape", to=[2.0, 3]),
    "shape of many dimensions": changed(*X, "recipe", "shape", to=[1] * 100),
    "shape missing": changed(*X, "recipe", "shape", to=None),
    "scheme unknown": changed(*X, "recipe", "scheme", to="symmetric"),
    "scale an int": changed(*X, "recipe", "scale", to=1),
    "scale huge": changed(*X, "recipe", "scale", to=1).replace('"scale": 1', '"scale": 1e999'),
    "zero point huge": changed(*X, "recipe", "zero_point", to=1 << 70),
    "recipe with more": changed(*X, "recipe", "axis", to=0),
    "complex of another shape": changed("tensors", "x.c", "recipe", "shape", to=[2]),
    "complex of another dtype": changed("tensors", "x.c", "recipe", "dtype", to="complex32"),
    "complex that is not": changed("tensors", "x.c", "recipe", "dtype", to="float64"),
    "complex64": changed("tensors", "x.c", "recipe", "dtype", to="complex64"),
    "complex under another name": changed("tensors", "x.c", "parts", "pairs", to="x.v"),
    "bits that are complex": changed("tensors", "x.c", "recipe", "encoding", to="bits"),
}


def with_metadata(text: str, path: Path) -> Path:
    save_file(PARTS, path, metadata={"format": "pt", "sdconvert.encoded": text})
    return path


def test_the_good_one_is_good(tmp_path: Path) -> None:
    found = tensors(with_metadata(json.dumps(GOOD), tmp_path / "m.safetensors"))
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "x.w": torch.qint8,
        "x.v": F,
        "x.c": torch.complex128,
    }


@pytest.mark.parametrize("case", TEXTS)
def test_metadata_that_lies_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = with_metadata(TEXTS[case], tmp_path / "m.safetensors")
    assert "sdconvert.encoded" in refused(path, tmp_path)


STATES = {
    "unknown object": {"eval": "1"},
    "two kinds": {"tensor": "a", "global": "b"},
    "tensor a number": {"tensor": 1},
    "part that is not there": {"tensor": "b"},
    "part twice": [{"tensor": "a"}, {"tensor": "a"}],
    "no parts": {"dict": []},
    "dict of singles": {"dict": [["a"]]},
    "call without arguments": {"call": "a", "state": None},
    "call in another order": {"args": [], "call": "a", "state": None},
    "deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[{"tensor": "a"}]]]]]]]]]]]]]]]]]]]]]]]]]]]],
    "encoded of nothing": {"encoded": "a", "recipe": RECIPE},
    "encoded without a recipe": {"encoded": "a"},
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_lies_is_refused(case: str) -> None:
    recipe = {
        "encoding": "subclass",
        "dtype": "float32",
        "shape": [1],
        "class": "x.Y",
        "strides": [1],
        "state": STATES[case],
    }
    with pytest.raises(sdconvert.UnreadableError):
        decode(recipe, {"a": torch.ones(1)})


def test_wrappers_inside_of_each_other_end_in_a_line(tmp_path: Path) -> None:
    inner: Any = torch.ones(2)
    for count in range(1, 31):
        for _ in range(7):
            inner = [inner]
        inner = wrapped(*W, state={"a": inner})
        source = saved({"x.w": inner}, tmp_path / "m.pt")
        if count < 4:
            sdconvert.convert(source, tmp_path / f"{count}.safetensors")
            assert sdconvert.verify(source, tmp_path / f"{count}.safetensors").equal
    assert "too many" in refused(source, tmp_path)
    recipe: dict[str, Any] = RECIPE
    role = "int_repr"
    for _ in range(200):
        recipe = {"encoding": "subclass", "dtype": "float32", "shape": [1], "class": "x.Y", "strides": [1]} | {
            "state": [[{"encoded": "a", "recipe": recipe}]]
        }
        role = f"a.{role}"
    with pytest.raises(sdconvert.UnreadableError, match="beyond reason"):
        decode(recipe, {role: torch.zeros(2, 3, dtype=torch.int8)})


def test_a_fake_tensor_has_no_values(tmp_path: Path) -> None:
    fake = (torch._subclasses.FakeTensor, *W[1:])
    source = saved({"x.w": wrapped(*fake, state=None), "x.v": torch.ones(1)}, tmp_path / "m.pt")
    report = sdconvert.convert(source, tmp_path / "o.safetensors")
    assert [(one.name, one.why) for one in report.skipped] == [("x.w", "a FakeTensor, without values")]


def test_decode_needs_no_trust_in_its_caller() -> None:
    with pytest.raises(sdconvert.UnsupportedError, match="not one that this version knows"):
        decode({"encoding": "other"}, {})
    with pytest.raises(sdconvert.UnsupportedError):
        decode({}, {})
    with pytest.raises(sdconvert.UnreadableError, match=r"parts are none, not int_repr"):
        decode(RECIPE, {})
    with pytest.raises(sdconvert.UnreadableError, match=r"int_repr is uint8, not int8"):
        decode(RECIPE, {"int_repr": torch.zeros(2, 3, dtype=torch.uint8)})
    with pytest.raises(sdconvert.UnreadableError, match=r"shape \[6\], but \[2, 3\]"):
        decode(RECIPE, {"int_repr": torch.zeros(6, dtype=torch.int8)})


def test_decode_takes_parts_that_are_views() -> None:
    base = torch.arange(24, dtype=torch.int8).reshape(4, 6)
    found = decode(RECIPE, {"int_repr": base[1:4, 2:4].t()})
    assert torch.equal(found.int_repr(), base[1:4, 2:4].t())


def test_memory_that_is_quantized_and_plain_has_no_place_in_a_pt(tmp_path: Path) -> None:
    integers = torch.arange(6, dtype=torch.int8)
    text = json.dumps(
        {"version": 1, "tensors": {"x.w": GOOD["tensors"]["x.w"] | {"parts": {"int_repr": "x.w.int_repr"}}}}
    )
    metadata = {"format": "pt", "sdconvert.encoded": text, "x.i": "x.w.int_repr"}
    save_file({"x.w.int_repr": integers.reshape(2, 3)}, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(sdconvert.UnsupportedError, match=r"x\.i has the same memory as the quantized tensor x\.w"):
        sdconvert.convert(tmp_path / "m.safetensors", tmp_path / "o.pt")
    sdconvert.convert(tmp_path / "m.safetensors", tmp_path / "o.pt", names=sdconvert.Names(exclude=("x.i",)))
    assert torch.load(tmp_path / "o.pt", weights_only=True)["x.w"].is_quantized


# Any change whatever to a sound text


def in_memory(tensor: torch.Tensor) -> TensorRef:
    data = raw(tensor)
    dtype, shape = BY_NAME[str(tensor.dtype)[6:]], tuple(tensor.shape)
    return strided(dtype, shape, Storage(MemorySource(data), 0, len(data), "s"), 0, contiguous_strides(shape))


ANY = {
    "x.w.int_repr": PARTS["x.w.int_repr"],
    "x.s.indices": I2,
    "x.s.values": V2,
    "x.r.compressed_indices": R,
    "x.r.plain_indices": C,
    "x.r.values": V2,
    "x.n.qdata": torch.ones(2),
    "x.c": torch.ones(3, 2, dtype=D),
}
SOUND = {
    "version": 1,
    "tensors": {
        **GOOD["tensors"],
        "x.s": {
            "recipe": {"encoding": "sparse_coo", "dtype": "float32", "shape": [2, 2], "is_coalesced": False},
            "parts": {"indices": "x.s.indices", "values": "x.s.values"},
        },
        "x.r": {
            "recipe": {"encoding": "sparse_csr", "dtype": "float32", "shape": [2, 2]},
            "parts": {role: f"x.r.{role}" for role in ("compressed_indices", "plain_indices", "values")},
        },
        "x.n": {
            "recipe": {
                **{"encoding": "subclass", "dtype": "float32", "shape": [2], "class": "x.Y", "strides": [1]},
                "state": {"dict": [["qdata", {"tensor": "qdata"}], ["a", {"call": "b", "args": [1], "state": None}]]},
            },
            "parts": {"qdata": "x.n.qdata"},
        },
    },
}
WORDS = [
    *ANY,
    "x.w",
    "x.s",
    "sparse_coo",
    "sparse_bsr",
    "quantized",
    "nested",
    "float32",
    "qint8",
    "complex128",
    "tensor",
]
scalars = (
    st.none() | st.booleans() | st.integers(-3, 5) | st.integers() | st.floats(allow_nan=False) | st.sampled_from(WORDS)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    inside = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [(node, key) for key, _ in inside] + [place for _, value in inside for place in places(value)]


@settings(max_examples=600)
@given(data=st.data())
def test_any_change_is_refused_or_makes_tensors_that_can_be_written(data: st.DataObject) -> None:
    document = copy.deepcopy(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(document)))
        if data.draw(st.booleans()):
            container[key] = data.draw(anything)
        elif isinstance(container, dict):
            container[data.draw(st.sampled_from(WORDS))] = container.pop(key)
    refs = {name: in_memory(tensor) for name, tensor in ANY.items()}
    try:
        whole = restored(refs, json.dumps(document), Limits())
        plain, encodings = spread(whole, Limits())
        restored(plain, to_text(encodings, plain), Limits())
        for one in encodings.values():
            live = {role: ANY[part] for role, part in one.parts.items() if part in ANY}
            decode(one.recipe, live)
    except sdconvert.SdconvertError as error:
        assert "\n" not in str(error)
