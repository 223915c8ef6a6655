"""Tensors that are no plain tensors: what torch saves of them is what comes out again, to the bit.

torch's own files are the source, and `torch.load` of the same file is the truth. Each kind goes from
torch to safetensors to .pt and to safetensors again, and is decoded at every stop.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from sdconvert.dtypes import BY_NAME
from sdconvert.gather import SCRATCH, fill
from sdconvert.load.decode import decode
from tests.outputs import header, raw
from tests.writers.test_torch_zip import without_id

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

KINDS: dict[str, Callable[[], torch.Tensor]] = {}


def kept(build: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    KINDS[build.__name__] = build
    return build


def scales(count: int = 3) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64) + 0.01


for _dtype in (torch.qint8, torch.quint8, torch.qint32):
    _name = str(_dtype)[6:]
    KINDS[f"{_name}_per_tensor"] = lambda d=_dtype: torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 3, d)  # type: ignore[misc]
    KINDS[f"{_name}_per_channel"] = lambda d=_dtype: torch.quantize_per_channel(  # type: ignore[misc]
        torch.randn(2, 3, 4), scales(), torch.tensor([0, 1, 2]), 1, d
    )


@kept
def float_qparams() -> torch.Tensor:
    zero = torch.tensor([0.5, 1.25, -2])
    return torch.quantize_per_channel(torch.randn(3, 4), scales().float(), zero, 0, torch.quint8)


@kept
def four_bits() -> torch.Tensor:
    zero = torch.tensor([0.5, 1, 2])
    return torch.quantize_per_channel(torch.randn(3, 5), scales().float(), zero, 0, torch.quint4x2)


@kept
def negative_zero_point() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(5), 1e-30, -70_000, torch.qint32)


@kept
def quantized_scalar() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.tensor(1.5), 0.1, 0, torch.qint8)


@kept
def quantized_empty() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.empty(0, 4), 0.1, 0, torch.qint8)


@kept
def quantized_transposed() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(3, 4), 0.25, 7, torch.quint8).t()


@kept
def quantized_slice() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(10, 4), 0.25, 7, torch.quint8)[3:7]


@kept
def quantized_channels_last() -> torch.Tensor:
    weight = torch.quantize_per_channel(torch.randn(4, 3, 2, 2), scales(4), torch.zeros(4).long(), 0, torch.qint8)
    return weight.contiguous(memory_format=torch.channels_last)


@kept
def quantized_parameter() -> torch.Tensor:
    return nn.Parameter(torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8), requires_grad=False)


@kept
def coo() -> torch.Tensor:
    return torch.randn(3, 4).relu().to_sparse()


@kept
def coo_uncoalesced() -> torch.Tensor:
    return torch.sparse_coo_tensor([[1, 0, 1], [1, 0, 1]], [1.0, 2.0, 4.0], (2, 2))


@kept
def coo_hybrid() -> torch.Tensor:
    return torch.sparse_coo_tensor([[2, 0]], torch.randn(2, 3, 2), (4, 3, 2))


@kept
def coo_empty() -> torch.Tensor:
    return torch.sparse_coo_tensor(size=(3, 0, 2))


@kept
def coo_scalar() -> torch.Tensor:
    return torch.tensor(2.5).to_sparse()


@kept
def coo_complex128() -> torch.Tensor:
    return torch.randn(2, 3, dtype=torch.complex128).to_sparse()


@kept
def coo_bool() -> torch.Tensor:
    return torch.tensor([[True, False], [True, True]]).to_sparse()


for _layout in ("csr", "csc"):
    KINDS[_layout] = lambda n=_layout: getattr(torch.randn(3, 4).relu(), f"to_sparse_{n}")()  # type: ignore[misc]
    KINDS[f"{_layout}_batch"] = lambda n=_layout: getattr(torch.ones(2, 3, 4), f"to_sparse_{n}")()  # type: ignore[misc]
    KINDS[f"{_layout}_hybrid"] = lambda n=_layout: getattr(torch.ones(3, 4, 2), f"to_sparse_{n}")(dense_dim=1)  # type: ignore[misc]
for _layout in ("bsr", "bsc"):
    KINDS[_layout] = lambda n=_layout: getattr(torch.randn(6, 4), f"to_sparse_{n}")((3, 2))  # type: ignore[misc]
    KINDS[f"{_layout}_batch"] = lambda n=_layout: getattr(torch.ones(2, 6, 4), f"to_sparse_{n}")((3, 2))  # type: ignore[misc]


@kept
def csr_int32() -> torch.Tensor:
    index = torch.tensor([0, 1, 2], dtype=torch.int32)
    return torch.sparse_csr_tensor(index, index[:2].clone(), torch.tensor([1.0, 2.0]), (2, 3))


@kept
def csr_unsorted() -> torch.Tensor:
    return torch.sparse_csr_tensor([0, 2], [1, 0], torch.tensor([1.0, 2.0]), (1, 2))


@kept
def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3), torch.randn(0, 3)])


@kept
def nested_transposed() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]).transpose(1, 2)


@kept
def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)


@kept
def jagged_with_lengths() -> torch.Tensor:
    offsets, lengths = torch.tensor([0, 3, 6]), torch.tensor([2, 3])
    return torch.nested.nested_tensor_from_jagged(torch.randn(6, 3), offsets, lengths=lengths)


@kept
def complex128() -> torch.Tensor:
    return torch.randn(3, 2, dtype=torch.complex128)


@kept
def complex128_conjugate() -> torch.Tensor:
    return torch.randn(3, 2, dtype=torch.complex128).conj().t()


@kept
def complex128_negative() -> torch.Tensor:
    return torch.randn(3, dtype=torch.complex128).conj().imag


@kept
def complex128_scalar() -> torch.Tensor:
    return torch.tensor(1 + 2j, dtype=torch.complex128)


@kept
def complex32() -> torch.Tensor:
    return torch.randn(3, 2, dtype=torch.complex32)


@kept
def complex32_conjugate() -> torch.Tensor:
    return torch.randn(3, 2, dtype=torch.complex32).conj()


@kept
def bits8() -> torch.Tensor:
    return torch.arange(6, dtype=torch.uint8).view(torch.bits8)


@kept
def bits16() -> torch.Tensor:
    return torch.arange(6, dtype=torch.int16).view(torch.bits16)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a file as live tensors: through the reader, then `decode`."""
    with sdconvert.open(path) as opened:
        weights = opened.state_dict
        live = {}
        for name, ref in weights.tensors.items():
            data = bytearray(ref.nbytes)
            if data:
                fill(ref, 0, memoryview(data), memoryview(bytearray(SCRATCH)))
            flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            live[name] = flat.view(getattr(torch, ref.dtype.name)).reshape(ref.shape)
        for name, one in weights.encoded.items():
            live[name] = decode(one.recipe, {role: live.pop(part) for role, part in one.parts.items()})
        return live


def identical(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal in every respect but strides: the bits of all that makes them up."""
    assert (ours.dtype, ours.layout) == (theirs.dtype, theirs.layout)
    assert ours.is_nested == theirs.is_nested
    if theirs.is_nested:
        assert ours.size(0) == theirs.size(0)
        for mine, yours in zip(ours.unbind(), theirs.unbind(), strict=True):
            identical(mine, yours)
        if theirs.layout == torch.jagged:
            assert torch.equal(ours.offsets(), theirs.offsets())
            assert (ours.lengths() is None) == (theirs.lengths() is None)
            assert ours._ragged_idx == theirs._ragged_idx
            assert (ours._get_min_seqlen(), ours._get_max_seqlen()) == (
                theirs._get_min_seqlen(),
                theirs._get_max_seqlen(),
            )
        return
    assert ours.shape == theirs.shape
    if theirs.is_quantized:
        assert ours.qscheme() == theirs.qscheme()
        if theirs.qscheme() == torch.per_tensor_affine:
            assert (ours.q_scale(), ours.q_zero_point()) == (theirs.q_scale(), theirs.q_zero_point())
        else:
            assert ours.q_per_channel_axis() == theirs.q_per_channel_axis()
            identical(ours.q_per_channel_scales(), theirs.q_per_channel_scales())
            identical(ours.q_per_channel_zero_points(), theirs.q_per_channel_zero_points())
        identical(ours.int_repr(), theirs.int_repr())
    elif theirs.layout == torch.sparse_coo:
        assert ours.is_coalesced() == theirs.is_coalesced()
        identical(ours._indices(), theirs._indices())
        identical(ours._values(), theirs._values())
    elif theirs.layout in (torch.sparse_csr, torch.sparse_bsr):
        identical(ours.crow_indices(), theirs.crow_indices())
        identical(ours.col_indices(), theirs.col_indices())
        identical(ours.values(), theirs.values())
    elif theirs.layout in (torch.sparse_csc, torch.sparse_bsc):
        identical(ours.ccol_indices(), theirs.ccol_indices())
        identical(ours.row_indices(), theirs.row_indices())
        identical(ours.values(), theirs.values())
    else:
        assert raw(ours) == raw(theirs)


def saved(obj: object, path: Path, **how: Any) -> Path:
    torch.save(obj, path, **how)
    return path


def there_and_back(source: Path, truth: dict[str, torch.Tensor], directory: Path) -> None:
    """Through every output format and back, each compared with what torch loads of the source."""
    stops = [source, *(directory / name for name in ("1.safetensors", "2.pt", "3.safetensors", "4.pt"))]
    for before, after in pairwise(stops):
        sdconvert.convert(before, after)
    for stop in stops:
        found = tensors(stop)
        assert found.keys() == truth.keys()
        for name, tensor in truth.items():
            identical(found[name], tensor)
        assert sdconvert.verify(source, stop).equal
        assert sdconvert.digest(stop) == sdconvert.digest(source)
    assert stops[1].read_bytes() == stops[3].read_bytes()


# Of v3 dtypes it takes the length for one of elements; of nested tensors it wants the sizes before it has read them.
TORCH_CANNOT_LOAD_LEGACY = ("complex32", "complex32_conjugate", "bits8", "bits16", "nested", "nested_transposed")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_again(kind: str, zipped: bool, tmp_path: Path) -> None:
    if not zipped and kind in TORCH_CANNOT_LOAD_LEGACY:
        pytest.skip("torch cannot load what it saved itself")
    state = {"x.w": KINDS[kind](), "x.plain": torch.ones(2)}
    source = saved(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    there_and_back(source, torch.load(source, weights_only=True), tmp_path)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"jagged", "jagged_with_lengths"}))
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_opens_the_pt_and_finds_the_same(kind: str, mmap: bool, tmp_path: Path) -> None:
    source = saved({"x.w": KINDS[kind](), "x.v": torch.ones(3)}, tmp_path / "m.pt")
    sdconvert.convert(source, tmp_path / "o.pt")
    found = torch.load(tmp_path / "o.pt", weights_only=True, mmap=mmap)
    truth = torch.load(source, weights_only=True)
    assert found.keys() == truth.keys()
    for name in truth:
        identical(found[name], truth[name])


NATIVE = [
    *(f"{name}_per_{what}" for name in ("qint8", "quint8", "qint32") for what in ("tensor", "channel")),
    *("float_qparams", "negative_zero_point", "quantized_scalar", "quantized_empty"),
    *("coo", "coo_uncoalesced", "coo_hybrid", "coo_bool", "nested", "complex128", "complex32", "csr_int32"),
]


@pytest.mark.parametrize("kind", NATIVE)
def test_the_pt_is_torchs_own_to_the_byte(kind: str, tmp_path: Path) -> None:
    """Where torch, too, saves nothing but what is needed: of a view it saves all that it is a view of."""
    state = OrderedDict({f"x.{i}": build for i in range(2) for build in [KINDS[kind]()]})
    state._metadata = OrderedDict()  # type: ignore[attr-defined]
    stream = io.BytesIO()
    torch.save(state, stream)
    (tmp_path / "m.pt").write_bytes(stream.getvalue())
    sdconvert.convert(tmp_path / "m.pt", tmp_path / "o.pt")
    assert without_id((tmp_path / "o.pt").read_bytes()) == without_id(stream.getvalue())


def test_parts_are_named_by_their_role_and_the_report_says_so(tmp_path: Path) -> None:
    state = {"fc.weight": KINDS["qint8_per_channel"](), "fc.c": KINDS["complex128"](), "fc.bias": torch.ones(2)}
    report = sdconvert.convert(saved(state, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    found = header(tmp_path / "o.safetensors")
    roles = ("int_repr", "scales", "zero_points")
    assert found.keys() == {"__metadata__", "fc.bias", "fc.c", *(f"fc.weight.{role}" for role in roles)}
    assert found["fc.weight.int_repr"]["dtype"] == "I8"
    assert (found["fc.c"]["dtype"], found["fc.c"]["shape"]) == ("F64", [3, 2, 2])
    assert found["__metadata__"].keys() == {"format", "sdconvert.encoded"}
    listed = report.to_json()["encoded"]
    assert [(one["name"], one["recipe"]["dtype"]) for one in listed] == [("fc.weight", "qint8"), ("fc.c", "complex128")]
    assert listed[0]["parts"] == {role: f"fc.weight.{role}" for role in roles}
    assert "fc.weight (quantized qint8), fc.c (complex128)" in str(report)


def test_a_pt_needs_no_recipe_for_what_torch_can_save(tmp_path: Path) -> None:
    report = sdconvert.convert(
        saved({"x.w": KINDS["coo"](), "x.c": KINDS["complex128"]()}, tmp_path / "m.pt"), tmp_path / "o.pt"
    )
    assert report.encoded == {}
    assert torch.load(tmp_path / "o.pt", weights_only=True)._metadata == {}


def test_a_pt_keeps_other_recipes_where_load_state_dict_does_not_look(tmp_path: Path) -> None:
    sdconvert.convert(saved({"x.w": KINDS["jagged"](), "x.b": torch.ones(2)}, tmp_path / "m.pt"), tmp_path / "o.pt")
    found = torch.load(tmp_path / "o.pt", weights_only=True)
    assert found.keys() == {"x.w.values", "x.w.offsets", "x.b"}
    assert list(found._metadata) == ["sdconvert.encoded"]
    model = nn.Module()
    model.x = nn.Module()
    model.x.b = nn.Parameter(torch.zeros(2))
    model.load_state_dict(found, strict=False)
    assert torch.equal(model.x.b, torch.ones(2))


def test_filters_and_renames_take_the_whole(tmp_path: Path) -> None:
    state = {"m.q.weight": KINDS["qint8_per_channel"](), "m.s": KINDS["coo"](), "m.c": KINDS["complex128"]()}
    source = saved(state, tmp_path / "m.pt")
    names = sdconvert.Names(strip_prefix="m.", rename=(("s", "other"),), exclude=("m.c",))
    sdconvert.convert(source, tmp_path / "o.safetensors", names=names)
    found = tensors(tmp_path / "o.safetensors")
    assert found.keys() == {"q.weight", "other"}
    identical(found["other"], state["m.s"])
    with pytest.raises(sdconvert.ChoiceError, match=r"int_repr fits no tensor"):
        sdconvert.convert(source, tmp_path / "p.safetensors", names=sdconvert.Names(exclude=("*.int_repr",)))
    sdconvert.convert(tmp_path / "o.safetensors", tmp_path / "q.safetensors", names=sdconvert.Names(include=("oth*",)))
    assert tensors(tmp_path / "q.safetensors").keys() == {"other"}


def test_two_tensors_never_get_the_name_of_a_part(tmp_path: Path) -> None:
    source = saved({"w": KINDS["coo"](), "w.values": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(sdconvert.UnsupportedError, match=r"part .* named 'w\.values'.*--rename"):
        sdconvert.convert(source, tmp_path / "o.safetensors")
    names = sdconvert.Names(rename=(("w", "v"),))
    sdconvert.convert(source, tmp_path / "o.safetensors", names=names)
    assert tensors(tmp_path / "o.safetensors").keys() == {"v", "w.values"}


def test_ties_of_encoded_tensors_are_written_once(tmp_path: Path) -> None:
    weight, numbers = KINDS["qint8_per_channel"](), KINDS["complex128"]()
    state = {"a.w": weight, "b.w": weight, "a.c": numbers, "b.c": numbers, "d.c": numbers.conj()}
    source = saved(state, tmp_path / "m.pt")
    report = sdconvert.convert(source, tmp_path / "o.safetensors")
    assert report.aliases["b.w.int_repr"] == "a.w.int_repr"
    assert report.aliases["b.c"] == "a.c"
    assert "d.c" not in report.aliases
    there_and_back(source, torch.load(source, weights_only=True), tmp_path)
    sdconvert.convert(source, tmp_path / "t.pt")
    found = torch.load(tmp_path / "t.pt", weights_only=True)
    assert found["a.w"].data_ptr() == found["b.w"].data_ptr()
    assert found["a.c"].data_ptr() == found["b.c"].data_ptr()


def test_a_file_without_encoded_tensors_says_nothing_of_them(tmp_path: Path) -> None:
    sdconvert.convert(saved({"a.w": torch.ones(2)}, tmp_path / "m.pt"), tmp_path / "o.safetensors")
    assert header(tmp_path / "o.safetensors")["__metadata__"] == {"format": "pt"}


def test_the_key_of_recipes_is_reserved(tmp_path: Path) -> None:
    weight = torch.ones(2)
    source = saved({"a.w": weight, "sdconvert.encoded": weight}, tmp_path / "m.pt")
    sdconvert.convert(source, tmp_path / "o.safetensors")
    assert header(tmp_path / "o.safetensors").keys() == {"__metadata__", "a.w", "sdconvert.encoded"}
    with pytest.raises(sdconvert.ChoiceError, match="set by the format itself"):
        sdconvert.convert(source, tmp_path / "p.safetensors", metadata={"sdconvert.encoded": "{}"})


def test_verify_and_digest_see_a_different_recipe(tmp_path: Path) -> None:
    integers = torch.arange(4, dtype=torch.int8)
    digests = set()
    for scale in (0.5, 0.25):
        weight = torch._make_per_tensor_quantized_tensor(integers, scale, 0)
        source = saved({"x.w": weight}, tmp_path / f"{scale}.pt")
        digests.add(sdconvert.digest(source))
    outcome = sdconvert.verify(tmp_path / "0.5.pt", tmp_path / "0.25.pt")
    assert [(one.name, one.what) for one in outcome.differences] == [("x.w", "recipe")]
    assert len(digests) == 2
    plain = saved({"x.w.int_repr": integers}, tmp_path / "plain.pt")
    assert [(one.name, one.what) for one in sdconvert.verify(plain, source).differences] == [("x.w", "recipe")]
    assert sdconvert.digest(plain) not in digests


class Scripted(nn.Module):
    """Buffers that libtorch pickles in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("coo", torch.eye(3).to_sparse())
        self.register_buffer("csr", torch.eye(4).to_sparse_csr())
        self.register_buffer("per_tensor", KINDS["qint8_per_tensor"]())
        self.register_buffer("per_channel", KINDS["qint8_per_channel"]())
        self.register_buffer("conjugate", KINDS["complex128_conjugate"]())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_torchscript_too(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Scripted()), tmp_path / "m.pt")
    there_and_back(tmp_path / "m.pt", torch.jit.load(tmp_path / "m.pt").state_dict(), tmp_path)


def test_meta_tensors_have_no_values_and_are_left_out(tmp_path: Path) -> None:
    source = saved({"x.w": torch.ones(2), "x.meta": torch.empty(2, device="meta")}, tmp_path / "m.pt")
    report = sdconvert.convert(source, tmp_path / "o.safetensors")
    assert [(one.name, "meta device" in one.why) for one in report.skipped] == [("x.meta", True)]


def test_the_dtypes_that_safetensors_has_no_name_for_are_known() -> None:
    unnamed = {name for name, dtype in BY_NAME.items() if dtype.code is None and dtype.stand_in is None}
    assert unnamed == {"qint8", "quint8", "qint32", "quint4x2", "quint2x4"}  # Never a tensor's own: int_repr's are.
