"""Seeds that torch itself writes: a fuzzer gets far into a reader only from what the reader knows."""

from __future__ import annotations

import gzip
import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn


def objects() -> Iterator[object]:
    """One small object of each kind that is read in its own way."""
    a = torch.arange(6.0).reshape(2, 3)
    yield {"state_dict": OrderedDict(w=a, v=a.t(), u=a[:, 1:], n=torch.tensor(2)), "epoch": 3, "optimizer": {"m": a}}
    yield {"r": a.half(), "b": a.bfloat16(), "c": torch.complex(a, a).conj(), "n": torch.complex(a, a).conj().imag}
    yield {
        "p": nn.Parameter(a),
        "e": torch.empty(0, 2),
        "x": a.double().expand(2, 2, 3),
        "z": torch.zeros((), dtype=torch.bool),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of what is still called experimental.
        yield {"coo": a.to_sparse(), "csr": a.to_sparse_csr(), "q": torch.quantize_per_tensor(a, 0.5, 3, torch.qint8)}
        yield {
            "c": torch.quantize_per_channel(a, torch.tensor([0.5, 1.0]), torch.tensor([0, 1]), 0, torch.quint8),
            "n": torch.nested.nested_tensor([a[0], a[1, :2]]),
            "m": torch.empty(2, device="meta"),
        }
    yield nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Conv1d(1, 1, 1, bias=False)))
    model = nn.Module()
    model.one = nn.Linear(2, 2)
    model.two = nn.utils.spectral_norm(nn.Linear(2, 2, bias=False))
    model.one.register_buffer("cache", a, persistent=False)
    yield {"model": model, "ema": [model.one], "arrays": {"f": a.numpy(), "s": a.numpy()[0, 0]}}
    yield nn.LSTM(1, 1)


def zips() -> Iterator[bytes]:
    """By torch.save."""
    for one in objects():
        yield _saved(one)


def legacy() -> Iterator[bytes]:
    """By torch.save as it was before 1.6; a whole model holds the sources of its classes too."""
    for one in objects():
        yield _saved(one, _use_new_zipfile_serialization=False)


def pickles() -> Iterator[bytes]:
    """By pickle alone: a storage is a whole file within."""
    a = torch.arange(4.0)
    for protocol in (0, 2, 4):
        yield pickle.dumps({"w": a, "v": a[1:], "f": a.numpy(), "s": {a.numpy()[1]}}, protocol)
        yield pickle.dumps(OrderedDict(f=a.numpy().astype(">f4"), i=a.int().numpy().reshape(2, 2).T), protocol)
        yield pickle.dumps({"f": a.numpy(), "h": a.half().numpy(), "o": [1, {"x": None}]}, protocol)


def scripts() -> Iterator[bytes]:
    """By torch.jit.save."""
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))):
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(model), stream)
        yield stream.getvalue()


def gzipped() -> Iterator[bytes]:
    """Either of them, packed."""
    for one in (*zips(), *legacy()):
        yield gzip.compress(one, 9, mtime=0)


def _saved(value: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, stream, **options)
    return stream.getvalue()
