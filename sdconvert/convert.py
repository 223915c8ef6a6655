"""The front door: one source, one output, one report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .conversion import Conversion
from .limits import DEFAULT_LIMITS, Limits
from .names import Names
from .opening import PathLike
from .progress import Bar, bar_of
from .report import Report

if TYPE_CHECKING:
    import torch


def convert(
    source: PathLike,
    output: PathLike | None = None,
    *,
    format: str | None = None,  # noqa: A002 - the field's word for it
    key: str | None = None,
    names: Names | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    dequantize: bool = False,
    densify: bool = False,
    metadata: Mapping[str, str] | None = None,
    extras: PathLike | None = None,
    verify: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Bar | bool | None = None,
) -> Report:
    """Write the weights of `source` to `output`, a path or an fsspec URL, bit for bit, and say what was done.

    `output`'s ending names its format unless `format` does; in a directory it is ``model`` with the
    ending of `format`, a safetensors file; without `output` it is `source` with that ending, beside it.
    `key` is the dotted path of the state dict, needed only where there are several; `names` renames and
    filters. With `dtype`, a torch name, floating-point tensors are cast to it, which needs torch.
    `max_shard_size`, in bytes or such as ``5GB``, splits the output into shards with an index, as
    huggingface_hub does; 0 is one file, None keeps the shards of a sharded source. With `dequantize`
    (`densify`) torch's quantized (sparse) tensors become plain ones, which are cast, too; without, they
    are stored as parts and a recipe. `metadata` joins the output's header. `extras` is a path for what is
    not weights, as JSON. `threads` copy at once. `revision` and `token` are for a source on the Hub,
    as in `open`. With `progress` a bar on the terminal shows it, or what a `progress.Bar` makes of it.

    When this returns, the output is there, whole, synced, and (with `verify`) read back and
    found right. Otherwise an SdconvertError was raised, and nothing on the disk has changed.
    """
    conversion = Conversion(
        source,
        output,
        format=format,
        key=key,
        names=names,
        dtype=dtype,
        max_shard_size=max_shard_size,
        dequantize=dequantize,
        densify=densify,
        metadata=metadata,
        extras=extras,
        verify=verify,
        overwrite=overwrite,
        dry_run=dry_run,
        threads=threads,
        revision=revision,
        token=token,
        limits=limits,
        progress=bar_of(progress),
    )
    return conversion.run()
