"""How much of a file's word is taken before it counts as hostile.

Every limit is far above what real checkpoints need and far below what hurts. They
bound memory and time together with one rule that needs no number: nothing is
allocated because a file *says* so, only because the bytes are there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The caps on what a source may ask for. Pass your own to `convert` or `open`.

    Sizes are bytes; the others are counts.
    """

    pickle_bytes: int = 1 << 30
    """Opcodes and small values of one pickle. 100,000 tensors take 11 MB; large byte
    strings do not count, they stay where they are in the file."""

    number_bytes: int = 1 << 10
    """One integer inside a pickle. torch's magic number has 10 bytes."""

    text_bytes: int = 64 << 20
    """One string inside a pickle, or one line: a byte array that protocol 2 wrote as text is the longest."""

    zip_members: int = 4_000_000
    """Records in a zip archive; each storage is one."""

    tensors: int = 4_000_000
    """Named tensors in one state dict."""

    name_bytes: int = 4 << 10
    """One name of a tensor, UTF-8, or of a class."""

    nesting: int = 8
    """Readers inside readers: gzip around a tar around a zip is 3."""

    inflate_ratio: int = 1100
    """Inflated over compressed bytes; deflate cannot do better than 1032."""

    inflate_bytes: int = 1 << 40
    """What one compressed record or gzip stream may unpack to: disk, in the directory of temporary files."""

    inflate_slack: int = 2 << 20
    """Bytes of an unpacked pickle, header or directory that are always read; beyond them 12 for each that was packed,
    since an object costs more than a byte of a bomb. Checkpoints of one archive, shards of one set share them."""

    header_bytes: int = 100_000_000
    """A safetensors header, or an index; the reference reader's own cap."""

    json_bytes: int = 192 << 20
    """Memory that a JSON document may take: an index of half a million tensors. Of a safetensors header, however
    many tensors it has, one value may take a third of it, such as metadata of 20 MB."""

    scattered_reads: int = 2_000_000
    """Reads of less than 16 bytes that one tensor may take. Its strides can spread single elements over
    a whole file; a transposed matrix is gathered in longer runs and does not count."""

    pieces: int = 65_536
    """Parts of one tensor. Every rank that had a part of it wrote one, or a few; all are looked at for
    every few MiB of it."""

    expansion: int = 16
    """Output bytes over the bytes of the storages they come from. Views that repeat elements
    (``expand``) or share them grow on the way out; 16 times is more than models do."""

    expansion_slack: int = 256 << 20
    """Output bytes that are always allowed, so that `expansion` never hits a small file."""


DEFAULT_LIMITS = Limits()
