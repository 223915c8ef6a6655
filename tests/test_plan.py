"""Who shares memory with whom, and what is written because of it."""

from __future__ import annotations

import pytest
import torch

import sdconvert
from tests.conftest import Converted


def test_the_same_view_is_written_once_under_the_first_name(converted: Converted) -> None:
    weight = torch.randn(4, 3)
    report, found = converted({"z.first": weight, "a.second": weight, "m.third": weight[:]})
    assert dict(report.aliases) == {"a.second": "z.first", "m.third": "z.first"}
    assert report.tensors == 1
    assert report.nbytes == 48
    assert all(torch.equal(tensor, weight) for tensor in found.values())


def test_disjoint_slices_are_written_apart_without_a_word(converted: Converted) -> None:
    qkv = torch.randn(9, 4)
    report, found = converted({"q.w": qkv[:3], "k.w": qkv[3:6], "v.w": qkv[6:]})
    assert (dict(report.aliases), report.warnings) == ({}, ())
    assert torch.equal(found["v.w"], qkv[6:])


def test_a_partial_overlap_and_a_transpose_are_written_whole_with_a_warning(converted: Converted) -> None:
    base = torch.randn(6, 6)
    for other in (base[2:4], base.t(), base[:, 1:3]):
        report, found = converted({"a.w": base, "b.w": other})
        assert torch.equal(found["b.w"], other)
        assert "a.w and b.w overlap" in report.warnings[0]


def test_one_byte_in_common_is_an_overlap_and_the_next_byte_is_none(converted: Converted) -> None:
    base = torch.arange(6, dtype=torch.int8)
    assert "overlap" in converted({"a.w": base[:3], "b.w": base[2:5]})[0].warnings[0]
    assert converted({"a.w": base[:3], "b.w": base[3:5]})[0].warnings == ()


def test_the_stride_of_a_dimension_of_one_does_not_break_a_tie(converted: Converted) -> None:
    base = torch.randn(5)
    report, _ = converted({"a.w": base.as_strided((1, 5), (5, 1)), "b.w": base.as_strided((1, 5), (77, 1))})
    assert dict(report.aliases) == {"b.w": "a.w"}


def test_different_dtypes_of_one_storage_are_no_tie(converted: Converted) -> None:
    base = torch.zeros(8, dtype=torch.uint16)
    report, _ = converted({"a.w": base, "b.w": base.view(torch.float8_e4m3fn)})
    assert dict(report.aliases) == {}


def test_an_alias_called_format_is_written_by_itself(converted: Converted) -> None:
    weight = torch.randn(3)
    report, found = converted({"w.a": weight, "format": weight})
    assert torch.equal(found["format"], weight)
    assert report.tensors == 1


def test_an_expansion_beyond_reason_is_refused_with_the_flag_that_allows_it(converted: Converted) -> None:
    obj = {"a.w": torch.zeros(1).expand(200_000_000)}
    with pytest.raises(sdconvert.UnreadableError, match="--max-expansion"):
        converted(obj)


def test_the_limit_of_expansion_is_to_the_byte(converted: Converted) -> None:
    limits = sdconvert.Limits(expansion=2, expansion_slack=100)  # 2 * 4 bytes of a storage, and 100 more: 27 floats.
    one = torch.ones(1)
    assert len(converted({"a.w": one.expand(27)}, limits=limits)[1]["a.w"]) == 27
    with pytest.raises(sdconvert.UnreadableError, match=r"112 bytes, made of 4 bytes .*--max-expansion 29 allows"):
        converted({"a.w": one.expand(28)}, limits=limits)


def test_a_modest_expansion_is_written_out(converted: Converted) -> None:
    tensor = torch.arange(3.0)[:, None].expand(3, 1000)
    assert torch.equal(converted({"a.w": tensor})[1]["a.w"], tensor)
