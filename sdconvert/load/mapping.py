"""Files seen as memory: private maps, for what lies in a local file as it is needed.

The size of a file is compared with its headers when it is opened, and again here, so what
is mapped is there. A file that somebody cuts short while it is mapped kills whoever touches
the lost pages (SIGBUS), and one that is rewritten shows through: `copy="read"` is for those.
Writing to a private map never reaches the file.
"""

from __future__ import annotations

import mmap
import os
import sys

from ..errors import UnreadableError
from ..source import FileSource, SliceSource, Source

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
# Where a page fault is a round trip, or where another machine may change the file unseen.
_REMOTE = frozenset(
    "nfs nfs4 cifs smb3 smbfs smb2 lustre ceph glusterfs afs 9p beegfs gpfs orangefs pvfs2 ocfs2 gfs2 davfs".split()
)


class Maps:
    """Private maps of files, one for each. They live as long as something uses their memory."""

    def __init__(self, *, remote: bool) -> None:
        self._remote = remote
        self._maps: dict[FileSource, mmap.mmap | None] = {}

    def find(self, source: Source, offset: int) -> tuple[mmap.mmap, int] | None:
        """The map that byte `offset` of `source` is in, and where in it; None when it has to be read instead.

        UnreadableError when the file is not any more what was opened.
        """
        if isinstance(source, SliceSource):
            offset += source.offset
            source = source.base
        found = self._maps.get(source)  # type: ignore[call-overload]
        if found is not None:
            return found, offset
        if not isinstance(source, FileSource):
            return None
        if source not in self._maps:
            self._maps[source] = self._map(source) if self._remote or not is_remote(source) else None
        found = self._maps[source]
        return None if found is None else (found, offset)

    @staticmethod
    def _map(source: FileSource) -> mmap.mmap | None:
        source.check_unchanged()
        flags = mmap.MAP_PRIVATE | _NORESERVE  # Or a map larger than the memory would be refused, used or not.
        try:
            return mmap.mmap(source.fileno(), source.nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except ValueError:  # Shorter than that by now.
            raise UnreadableError("was changed while it was read. Try again when it is complete") from None
        except OSError:  # A file system that cannot, or no address space.
            return None


def is_remote(source: FileSource) -> bool:
    """Whether the file is on a file system that another machine, or a process, serves."""
    device = os.fstat(source.fileno()).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:  # ID, parent, device, root, mount point, options, tags, "-", type, ...
                before, _, after = line.partition(" - ")
                if before.split(" ", 3)[2] == number:
                    kind = after.split(" ", 1)[0]
                    return kind in _REMOTE or kind.startswith("fuse")
    except (OSError, IndexError):
        pass
    return False
