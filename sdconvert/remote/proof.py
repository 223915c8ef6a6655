"""Is what was read the file that the Hub knows by its digest? Taken along with the reading, not after it.

Containers without checksums of their own (safetensors, torch's legacy format, bare pickles) cannot tell
wrong bytes of the right length. For a file of the Hub its digest is known: the SHA-256 of an LFS file, git's own
id of another. Bytes are hashed in order; what arrives early waits, on the disk when it is much. What was
never read is fetched at the end only if it is next to nothing; otherwise the file could not be checked, and it says so.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right, insort
from collections.abc import Callable

from ..errors import UnreadableError
from ..inflated import Scratch

_STEP = 1 << 20
_LITTLE = 64 << 10  # Bytes that may be fetched for the sake of the check alone, and this part of the file:
_PART = 200

Fetch = Callable[[int, memoryview], None]


class Proof:
    """The digest of `nbytes` bytes that come in any order, from any thread, to be compared with `digest`.

    `digest` is 64 hexadecimal digits of a SHA-256, or 40 of the SHA-1 that git gives a file. `doubt` says, after
    `finish`, why nothing could be said, "" when all is well.
    """

    def __init__(self, digest: str, nbytes: int) -> None:
        self.digest, self.doubt = digest, ""
        self._nbytes = nbytes
        self._hash = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(usedforsecurity=False)
        if len(digest) != 64:
            self._hash.update(f"blob {nbytes}\0".encode())
        self._lock = threading.Lock()
        self._hashed = 0  # Bytes, from the beginning.
        self._early: list[tuple[int, int, int]] = []  # Begin, end, and where they wait; in order, apart.
        self._waiting = Scratch()
        self._again = False

    def saw(self, offset: int, data: memoryview) -> None:
        """These bytes were read, from byte `offset` on."""
        with self._lock:
            if self.doubt:
                return
            unseen = self._unseen(offset, offset + len(data))
            self._again = self._again or unseen != [(offset, offset + len(data))]
            for begin, stop in unseen:
                part = data[begin - offset : stop - offset]
                if begin == self._hashed:
                    self._hash.update(part)
                    self._hashed = stop
                else:
                    self._keep(begin, part)
            self._catch_up()

    def finish(self, fetch: Fetch) -> None:
        """Compare, having got by `fetch` what little is missing. UnreadableError when the bytes are not the file's."""
        missing = self._unseen(0, self._nbytes)
        if self.doubt or sum(end - begin for begin, end in missing) > _LITTLE + self._nbytes // _PART:
            self.doubt = self.doubt or "only a part of it was read"
            return
        for begin, end in missing:
            for at in range(begin, end, _STEP):
                data = memoryview(bytearray(min(_STEP, end - at)))
                fetch(at, data)
                self.saw(at, data)
        if self._hash.hexdigest() != self.digest:
            raise UnreadableError(
                "the bytes that came are not those of the file: their digest is another than the Hub's "
                f"({self.digest}). Something on the way changed them; try again"
            )
        if self._again:
            self.doubt = "parts of it were read more than once"

    def _unseen(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that were not seen yet."""
        found: list[tuple[int, int]] = []
        at = max(begin, min(self._hashed, end))
        for early_begin, early_end, _ in self._early[max(0, bisect_right(self._early, (at,)) - 1) :]:
            if early_begin >= end:
                break
            if early_end > at:
                if early_begin > at:
                    found.append((at, early_begin))
                at = min(early_end, end)
        if at < end:
            found.append((at, end))
        return found

    def _keep(self, begin: int, data: memoryview) -> None:
        place = self._waiting.allocate(len(data))
        try:
            self._waiting.write(bytes(data), place)
        except OSError as error:
            self.doubt = f"there is no room to keep what came early: {error.strerror}"
            return
        insort(self._early, (begin, begin + len(data), place))

    def _catch_up(self) -> None:
        done = 0
        for begin, end, place in self._early:
            if begin != self._hashed:
                break
            for at in range(0, end - begin, _STEP):
                data = memoryview(bytearray(min(_STEP, end - begin - at)))
                self._waiting.readinto(place + at, data)
                self._hash.update(data)
            self._hashed = end
            done += 1
        del self._early[:done]
