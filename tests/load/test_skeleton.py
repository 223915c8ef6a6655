"""`sdconvert.skeleton`: what is on meta in it and what is real, and that nothing of it is left afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

import sdconvert
from tests.load.models import ResNet, Transformer


def test_parameters_are_on_meta_and_buffers_are_real() -> None:
    with sdconvert.skeleton():
        model = ResNet()
    assert all(param.is_meta for param in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    expected = ResNet()
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()} == {
        n: (p.shape, p.dtype, p.requires_grad) for n, p in expected.named_parameters()
    }
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), expected.buffers(), strict=True))


def test_ties_hold_whichever_way_they_are_made() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.randn(3, 3))
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.a.weight = weight
            self.b.weight = weight
            self.c = nn.Linear(3, 3)
            self.c.weight = self.b.weight
            self.others = nn.ModuleList(nn.Linear(3, 3) for _ in range(50))

    with sdconvert.skeleton():
        model = Tied()
    assert model.a.weight is model.b.weight is model.c.weight
    assert len({id(param) for param in model.parameters()}) == 1 + 3 + 100, "identities of the dead were taken for ties"


def test_initialisation_is_left_out_even_where_it_was_imported_by_name() -> None:
    from torch.nn.init import kaiming_uniform_, orthogonal_, trunc_normal_

    with sdconvert.skeleton():
        layer = nn.Linear(8, 8)
        for function in (kaiming_uniform_, orthogonal_, trunc_normal_, nn.init.xavier_normal_, nn.init.dirac_):
            if function is not nn.init.dirac_:
                assert function(layer.weight).is_meta
        layer.weight.data.normal_(0, 0.02)
        with torch.no_grad():
            layer.weight[0] = 1
            layer.weight.erfinv_().mul_(3).clamp_(-1, 1)
        layer.bias.requires_grad_(False)
    assert layer.weight.is_meta
    assert not layer.bias.requires_grad


def test_values_of_buffers_are_computed() -> None:
    with sdconvert.skeleton():
        table = torch.zeros(4)
        nn.init.constant_(table, 3.0)
        table[1] = 7
        table.mul_(2)
    assert table.tolist() == [6, 14, 6, 6]


def test_the_random_numbers_of_others_are_not_used_up() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with sdconvert.skeleton():
        Transformer()
    assert torch.equal(torch.rand(3), expected)


def test_it_nests() -> None:
    with sdconvert.skeleton():
        with sdconvert.skeleton():
            inner = nn.Linear(1, 1)
        outer = nn.Linear(1, 1)
    assert inner.weight.is_meta
    assert outer.weight.is_meta
    assert not nn.Linear(1, 1).weight.is_meta


@pytest.fixture
def untouched() -> Any:
    before = nn.Module.register_parameter, dict(vars(nn.init))
    yield
    assert nn.Module.register_parameter is before[0]
    assert dict(vars(nn.init)) == before[1]


def _fails() -> None:
    with sdconvert.skeleton():
        nn.Linear(1, 1)
        raise KeyError("in the constructor")


@pytest.mark.usefixtures("untouched")
def test_everything_is_put_back_also_after_an_error() -> None:
    with pytest.raises(KeyError):
        _fails()
    weight = nn.Linear(100, 100).weight
    assert not weight.is_meta
    assert weight.std() > 0


@pytest.mark.usefixtures("untouched")
def test_other_threads_do_not_notice() -> None:
    inside, built = threading.Barrier(2), threading.Barrier(2)
    found: dict[str, bool] = {}

    def plainly() -> None:
        inside.wait(60)
        layer = nn.Linear(50, 50)
        found["plain"] = not layer.weight.is_meta and bool(layer.weight.std() > 0)
        built.wait(60)

    thread = threading.Thread(target=plainly)
    thread.start()
    with sdconvert.skeleton():
        inside.wait(60)
        layer = nn.Linear(50, 50)
        built.wait(60)
    thread.join()
    assert layer.weight.is_meta
    assert found == {"plain": True}


@pytest.mark.usefixtures("untouched")
def test_many_threads_build_at_once() -> None:
    models: list[nn.Module] = []

    def build() -> None:
        for _ in range(20):
            with sdconvert.skeleton():
                models.append(Transformer())

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 80
    assert all(param.is_meta for model in models for param in model.parameters())
    assert all(model.head.weight is model.embedding.weight for model in models)  # type: ignore[union-attr]


def test_lazy_parameters_and_classes_of_their_own_stay_as_they_are() -> None:
    class Special(nn.Parameter):
        pass

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.special = Special(torch.ones(2))
            self.lazy = nn.LazyLinear(3)

    with sdconvert.skeleton():
        model = Odd()
    assert type(model.special) is Special
    assert model.special.tolist() == [1, 1]
    assert torch.nn.parameter.is_lazy(model.lazy.weight)


def test_building_costs_no_memory_and_no_slow_imports() -> None:
    code = """
import sys, torch, sdconvert
from torch import nn
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
before = resident()
with sdconvert.skeleton():
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8)))
    model[0].weight.data.normal_()
print(resident() - before, "sympy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, imported = done.stdout.split()
    assert int(grown) < 64 << 10, "512 MiB of weights were filled"
    assert imported == "False"
