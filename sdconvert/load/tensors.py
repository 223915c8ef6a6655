"""The relay of `load`: names, requests, tensors."""

from __future__ import annotations

from collections import OrderedDict

import torch

from ..errors import within
from ..limits import Limits
from ..names import Names
from ..opening import PathLike
from ..plan import check_cost
from ..progress import Bar, bar_of
from ..tensor import TensorRef
from .filling import Request, filled
from .offer import Encoded, Offer, Patterns, Where, dtype_of, offered
from .place import CPU, TORCH, DeviceMap, Devices, Placer, castable, dtype_named
from .targets import Target


def load(
    source: PathLike,
    *,
    device: Devices,
    dtype: str | torch.dtype | None,
    key: str | None,
    strip_prefix: str | None,
    include: Patterns,
    exclude: Patterns,
    copy: str,
    threads: int | None,
    progress: Bar | bool | None,
    revision: str | None,
    token: str | None,
    limits: Limits,
) -> dict[str, torch.Tensor]:
    """As `sdconvert.load` says."""
    devices, placer = DeviceMap(device), Placer(copy, threads)
    wanted = None if dtype is None else dtype_named(dtype)

    def target(name: str, offer: Offer) -> Target:
        row = None if type(offer.content) is Encoded else dtype_of(offer)  # As in a conversion, these stay as they are.
        cast = wanted if wanted is not None and row is not None and castable(row) else None
        kind = TORCH[cast.name if cast else offer.dtype]
        return Target(kind, devices.of(name) or CPU, in_place=False)

    where = Where(revision, token, limits)
    with offered(source, where, key=key, include=include, exclude=exclude) as opened, within(opened.name):
        if strip_prefix is not None:
            names, _ = Names(strip_prefix=strip_prefix).apply({name: name for name in opened.offers})
            opened = opened.renamed(names)
        devices.check(opened.offers)
        requests = [Request(name, offer, target(name, offer)) for name, offer in opened.offers.items()]
        contents = {(id(offer.content), aim): offer.nbytes for _, offer, aim in requests if aim.device.type != "meta"}
        plain = {name: offer.content for name, offer, _ in requests if type(offer.content) is TensorRef}
        once = {id(tensor): tensor.nbytes for tensor in plain.values()}
        check_cost(plain, sum(once.values()), limits)
        with bar_of(progress)("loading", sum(contents.values())) as update:
            tensors = filled(requests, placer, update)
    state: OrderedDict[str, torch.Tensor] = OrderedDict(zip(opened.offers, tensors, strict=True))
    if opened.versions is not None:
        state._metadata = opened.versions  # type: ignore[attr-defined]
    return state
