"""``--dequantize`` and ``--densify``: what `dequantize()` and `to_dense()` give, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sdconvert
import sdconvert.computed
import sdconvert.sparse
from tests.outputs import contents, raw
from tests.test_encodings import KINDS, saved
from tests.test_encodings_hostile import OUTSIDE
from tests.test_subclasses import plain

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUANTIZED = [
    name for name in KINDS if "qint" in name or name.startswith(("quantized", "quint", "float_q", "four", "neg"))
]
SPARSE = [name for name in KINDS if name.startswith(("coo", "csr", "csc")) and "batch" not in name]


@pytest.fixture(params=[False, True], ids=["", "tight"])
def tight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tensors were larger than blocks."""
    if request.param:
        monkeypatch.setattr(sdconvert.computed, "BLOCK", 3)
        monkeypatch.setattr(sdconvert.sparse, "BLOCK", 3)


def dense(tensor: torch.Tensor, tmp_path: Path, **options: str) -> torch.Tensor:
    source = saved({"x.w": tensor, "x.b": torch.ones(3)}, tmp_path / "m.pt")
    report = sdconvert.convert(
        source, tmp_path / "o.safetensors", dequantize=True, densify=True, overwrite=True, **options
    )
    assert report.encoded == {} or tensor.dtype.is_complex
    assert report.warnings == ()
    return contents(tmp_path / "o.safetensors")["x.w"]


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("kind", QUANTIZED)
def test_dequantized_as_torch_does_it(kind: str, tmp_path: Path) -> None:
    tensor = KINDS[kind]()
    found = dense(tensor, tmp_path)
    assert found.dtype == torch.float32
    assert raw(found) == raw(tensor.dequantize())


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("kind", SPARSE)
def test_dense_as_torch_does_it(kind: str, tmp_path: Path) -> None:
    tensor = KINDS[kind]()
    expected = tensor.to_dense()
    found = dense(tensor, tmp_path)
    if tensor.dtype.is_complex:
        found = torch.view_as_complex(found)
    assert found.dtype == expected.dtype
    assert raw(found) == raw(expected)


def sums(dtype: torch.dtype, *dims: int) -> Callable[[], torch.Tensor]:
    """Many values at few indices: the order in which they are added up shows."""
    return lambda: torch.sparse_coo_tensor(
        torch.randint(0, 5, (1, 3000)), torch.randn(3000, *dims).to(dtype), (5, *dims)
    )


SUMS = {
    "float32": sums(torch.float32),
    "float16": sums(torch.float16),
    "bfloat16": sums(torch.bfloat16),
    "bfloat16 hybrid": sums(torch.bfloat16, 4),
    "int8": sums(torch.int8),
    "complex64": sums(torch.complex64),
}


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("kind", SUMS)
def test_values_at_one_index_are_added_up_in_torchs_order(kind: str, tmp_path: Path) -> None:
    tensor = SUMS[kind]()
    assert raw(dense(tensor, tmp_path)) == raw(tensor.to_dense())


def special() -> torch.Tensor:
    values = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45])
    return torch.sparse_coo_tensor([[0, 1, 2, 5]], values, (7,), is_coalesced=True)


def test_zeros_and_what_is_no_number(tmp_path: Path) -> None:
    assert raw(dense(special(), tmp_path)) == raw(special().to_dense())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_they_are_cast_then(dtype: str, tmp_path: Path) -> None:
    target = getattr(torch, dtype)
    tensor = KINDS["qint8_per_channel"]()
    assert torch.equal(dense(tensor, tmp_path, dtype=dtype), tensor.dequantize().to(target))
    tensor = KINDS["coo_hybrid"]()
    assert torch.equal(dense(tensor, tmp_path, dtype=dtype), tensor.to_dense().to(target))


def test_large_tensors_of_many_blocks(tmp_path: Path) -> None:
    weight = torch.quantize_per_channel(
        torch.randn(300, 7, 500), torch.rand(7) + 0.1, torch.zeros(7).long(), 1, torch.qint8
    )
    assert raw(dense(weight, tmp_path)) == raw(weight.dequantize())
    values = torch.where(torch.rand(700, 900) < 0.3, torch.randn(700, 900), 0.0)
    for tensor in (values.to_sparse(), values.to_sparse_csr(), values.to_sparse_csc()):
        assert raw(dense(tensor, tmp_path)) == raw(values)


def test_ties_stay_ties(tmp_path: Path) -> None:
    weight = KINDS["qint8_per_channel"]()
    source = saved({"a.w": weight, "b.w": weight}, tmp_path / "m.pt")
    report = sdconvert.convert(source, tmp_path / "o.safetensors", dequantize=True)
    assert report.aliases == {"b.w": "a.w"}


def test_one_flag_does_not_do_the_others_work(tmp_path: Path) -> None:
    source = saved({"x.q": KINDS["qint8_per_tensor"](), "x.s": KINDS["coo"]()}, tmp_path / "m.pt")
    assert list(sdconvert.convert(source, tmp_path / "1.safetensors", dequantize=True).encoded) == ["x.s"]
    assert list(sdconvert.convert(source, tmp_path / "2.safetensors", densify=True).encoded) == ["x.q"]


STAY = {
    "bsr": (lambda: KINDS["bsr"](), "COO, CSR and CSC, not sparse_bsr"),
    "csr of batches": (lambda: KINDS["csr_batch"](), "not of batches"),
    "nested": (lambda: KINDS["nested"](), "not nested"),
    "a wrapper": (plain, "torch's own quantized tensors, not tests.test_subclasses.Wrapper"),
    "float8": (lambda: torch.sparse_coo_tensor([[0]], torch.ones(1).to(torch.float8_e5m2), (1,)), "float8_e5m2 dense"),
}


@pytest.mark.parametrize("kind", STAY)
def test_what_stays_encoded_is_said(kind: str, tmp_path: Path) -> None:
    build, why = STAY[kind]
    source = saved({"x.w": build()}, tmp_path / "m.pt")
    report = sdconvert.convert(source, tmp_path / "o.safetensors", dequantize=True, densify=True)
    assert list(report.encoded) == ["x.w"]
    assert any(warning.startswith("x.w stays encoded: ") and why in warning for warning in report.warnings)


def test_too_many_values_in_no_order_stay_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdconvert.sparse, "_LISTED", 2)
    for kind, why in (("coo_uncoalesced", "too many to sort"), ("csc", "by columns")):
        report = sdconvert.convert(
            saved({"x.w": KINDS[kind]()}, tmp_path / "m.pt"), tmp_path / f"{kind}.pt", densify=True
        )
        assert why in report.warnings[0]


@pytest.mark.parametrize(
    "case", [case for case in OUTSIDE if case.startswith(("coo", "csr")) and "not coalesced" not in case]
)
def test_an_index_outside_is_refused_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    source = saved({"x.w": OUTSIDE[case]}, tmp_path / "m.pt")
    with pytest.raises(sdconvert.UnreadableError, match=r"x\.w: .*damaged"):
        sdconvert.convert(source, tmp_path / "o.safetensors", densify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_shape_beyond_reason_is_refused_with_the_flag_that_allows_it(tmp_path: Path) -> None:
    tensor = torch.sparse_coo_tensor([[1], [1]], [1.0], (1 << 30, 1 << 30))
    with pytest.raises(sdconvert.UnreadableError, match="--max-expansion"):
        sdconvert.convert(saved({"x.w": tensor}, tmp_path / "m.pt"), tmp_path / "o.safetensors", densify=True)


def test_the_checksums_of_what_they_are_made_of_are_checked(tmp_path: Path) -> None:
    integers = torch.full((5000,), 77, dtype=torch.int8)
    source = saved({"x.w": torch._make_per_tensor_quantized_tensor(integers, 0.5, 0)}, tmp_path / "m.pt")
    data = source.read_bytes()
    at = data.index(b"M" * 5000)
    source.write_bytes(data[:at] + b"N" + data[at + 1 :])
    with pytest.raises(sdconvert.UnreadableError, match="checksum"):
        sdconvert.convert(source, tmp_path / "o.safetensors", dequantize=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_the_flags_of_the_command_line(tmp_path: Path) -> None:
    source = saved({"x.q": KINDS["qint8_per_tensor"](), "x.s": KINDS["coo"]()}, tmp_path / "m.pt")
    command = [sys.executable, "-m", "sdconvert", "to-pt", str(source)]
    outputs = [tmp_path / "1.pt", tmp_path / "2.pt"]
    for output, flags in zip(outputs, ([], ["--dequantize", "--densify"]), strict=True):
        run = subprocess.run([*command, str(output), "--json", *flags], capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
    found = [torch.load(output, weights_only=True) for output in outputs]
    assert [found[0]["x.q"].is_quantized, found[0]["x.s"].is_sparse] == [True, True]
    assert torch.equal(found[1]["x.q"], found[0]["x.q"].dequantize())
    assert torch.equal(found[1]["x.s"], found[0]["x.s"].to_dense())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """Beside a run of 100 kB, one of 150 MB of output takes the buffers of its threads more."""
    script = (
        "import resource, sys, sdconvert\n"
        "sdconvert.convert(sys.argv[1], sys.argv[2], dequantize=True, densify=True, dtype='float64')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for name, size in (("small", 64), ("large", 2500)):
        weight = torch.quantize_per_channel(
            torch.randn(size, size), torch.ones(size), torch.zeros(size).long(), 0, torch.qint8
        )
        grid = torch.zeros(size, size)
        grid[::3, ::5] = 1.5
        source = saved({"x.q": weight, "x.s": grid.to_sparse(), "x.r": grid.to_sparse_csr()}, tmp_path / f"{name}.pt")
        run = subprocess.run(
            [sys.executable, "-c", script, str(source), str(tmp_path / f"{name}.safetensors")],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout))
    assert peaks[1] - peaks[0] < 80 << 10, peaks


def test_an_index_that_is_there_twice_is_added_up_across_blocks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdconvert.computed, "BLOCK", 3)
    monkeypatch.setattr(sdconvert.sparse, "BLOCK", 3)
    tensor = torch.sparse_coo_tensor(torch.tensor([[0, 2, 3, 3, 6]]), torch.arange(1.0, 6.0), (8,))
    assert torch.equal(dense(tensor, tmp_path), tensor.to_dense())
