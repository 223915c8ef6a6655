"""Output files that appear whole under their name, or not at all.

Where the file system can (``O_TMPFILE``), the file has no name while it is written, so
not even a power cut leaves a part of it; ``link`` gives it its name when it is complete
and on the disk. Replacing an existing file needs a hidden name for the moment before the
rename. Elsewhere a hidden name beside the target is used all the way. Should a run be
killed while there is one, the next run for the same output finds it unlocked and removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from .errors import OutputError
from .source import Origin
from .threads import started

_HIDDEN = ".sdconvert-tmp"
# What open(2) says where O_TMPFILE, or linking it, does not exist.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EPERM, errno.EACCES})


class NewFile:
    """A file being written: `fd` is open for reading and writing, `path` is what it will be called."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.temporary: str | None = None
        self.replaced = False
        self.old: str | None = None
        try:
            self.fd = self._open()
        except BaseException:
            self._unlink_temporary()
            os.close(self.directory)
            raise
        with suppress(OSError):  # Where locks do not work, nothing abandoned is found either.
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _open(self) -> int:
        self._remove_abandoned()
        flags = os.O_RDWR | os.O_CLOEXEC
        # The link below goes through /proc; without it a nameless file could never get a name.
        if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
            try:
                return os.open(".", flags | os.O_TMPFILE, 0o666, dir_fd=self.directory)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        self.temporary = self._hidden_name()
        return os.open(self.temporary, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=self.directory)

    def _hidden_name(self) -> str:
        return f"{self._hidden_prefix()}{os.urandom(6).hex()}{_HIDDEN}"

    def _hidden_prefix(self) -> str:
        return f".{self.path.name[:50]}."

    def _remove_abandoned(self) -> None:
        """Remove hidden files that a killed run left for this very output: those that nobody has locked."""
        prefix = self._hidden_prefix()
        for name in os.listdir(self.directory):
            if name.startswith(prefix) and name.endswith(_HIDDEN):
                with suppress(OSError):
                    found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory)
                    try:
                        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.unlink(name, dir_fd=self.directory)
                    finally:
                        os.close(found)

    def sync(self) -> None:
        """Return when the bytes are on the disk."""
        os.fsync(self.fd)

    def publish(self, *, alone: bool = True) -> None:
        """Give the file its name. It must be synced already. FileExistsError if the name was taken meanwhile.

        `alone`, a file that has replaced another stays; otherwise whoever put the old ones aside undoes it.
        """
        nameless = f"/proc/self/fd/{self.fd}"
        try:
            self._link(self.temporary or nameless, self.path.name)
        except FileExistsError:
            if not self.overwrite:
                raise
            if self.temporary is None:
                self.temporary = self._hidden_name()  # Before it is there: an interrupt may come right after.
                self._link(nameless, self.temporary)
            self.replaced = True
            os.rename(self.temporary, self.path.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            self.temporary = None
        try:
            os.fsync(self.directory)
        except OSError as error:
            if not self.replaced:
                self.withdraw()
                raise
            if not alone:
                raise
            raise OutputError(
                f"{self.path}: was replaced and is whole, but its directory could not be synced: {error.strerror}"
            ) from error

    def _link(self, source: str, name: str) -> None:
        # With src_dir_fd, Python calls linkat(AT_SYMLINK_FOLLOW), which the links in /proc need.
        os.link(source, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def put_aside(self, *, away: bool) -> None:
        """Keep what is to be overwritten under a hidden name until `forget_old`; with `away` it loses its own now."""
        hidden = self.old = self._hidden_name()  # Before it is there: an interrupt may come right after.
        try:
            if away or not self._linked(hidden):
                os.rename(self.path.name, hidden, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except FileNotFoundError:
            self.old = None

    def _linked(self, hidden: str) -> bool:
        """Give what is there a second name. False where the file system, or who owns the file, does not allow it."""
        try:
            os.link(self.path.name, hidden, src_dir_fd=self.directory, dst_dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:
            return False
        return True

    def withdraw(self) -> None:
        """Undo `publish` and `put_aside`: the name is again what it was, or nobody's. A file that was replaced and not
        put aside is gone, so what replaced it stays."""
        if self.old is not None:
            os.rename(self.old, self.path.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            with suppress(FileNotFoundError):  # Renaming to another link of the same file does nothing.
                os.unlink(self.old, dir_fd=self.directory)
            self.old = None
        elif not self.replaced and self.is_published():
            os.unlink(self.path.name, dir_fd=self.directory)

    def forget_old(self) -> None:
        """Remove what was put aside."""
        for _ in range(2):  # As in `close`.
            if self.old is not None:
                with suppress(OSError):
                    os.unlink(self.old, dir_fd=self.directory)
                    self.old = None

    def is_published(self) -> bool:
        """Whether the file has its name. Asked of the disk: an interrupt may come before it could be noted here."""
        try:
            found = os.stat(self.path.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        own = os.fstat(self.fd)
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

    def close(self) -> None:
        """Let go; what was not published is gone."""
        try:
            with suppress(OSError):
                os.close(self.fd)
            self._unlink_temporary()
        finally:  # An interrupt may have come.
            self._unlink_temporary()
            with suppress(OSError):
                os.close(self.directory)

    def _unlink_temporary(self) -> None:
        for _ in range(2):  # A disk in trouble may let go at the second try; a third would not be better.
            if self.temporary is not None:
                with suppress(OSError):
                    with suppress(FileNotFoundError):
                        os.unlink(self.temporary, dir_fd=self.directory)
                    self.temporary = None


@contextmanager
def new_file(path: Path, *, overwrite: bool, nbytes: int) -> Iterator[NewFile]:
    """A file of `nbytes` bytes to be written and published; an error leaves what was there before.

    OutputError when it cannot be written: no directory, no space, no permission, or a name
    that is taken without `overwrite`.
    """
    try:
        file = NewFile(path, overwrite=overwrite)
        try:
            reserve(file.fd, nbytes)
            yield file
        finally:
            file.close()
    except FileExistsError:
        raise OutputError(f"{path}: exists already. --overwrite replaces it") from None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}. Nothing was left behind") from error


def publish(files: list[NewFile], *, one: bool = False) -> None:
    """Give all files their names, the first one last: it is what says that the others are there.

    An error leaves what was there before. With `one` they are parts of one thing, an index and its shards: the old
    index goes away before the first shard is replaced, so that not even a kill leaves one that names parts of both.
    """
    try:
        if len(files) > 1:
            for file in files:
                if file.overwrite:
                    file.put_aside(away=one and file is files[0])
        for file in reversed(files):
            file.publish(alone=len(files) == 1)
    except BaseException:
        for file in files:
            with suppress(OSError):
                file.withdraw()
        raise
    try:
        for file in files:
            file.forget_old()
    finally:  # An interrupt may have come.
        for file in files:
            file.forget_old()


def reserve(fd: int, nbytes: int) -> None:
    """Take the disk space now: a disk that is too full says so before the work. OSError when it is."""
    if nbytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


@contextmanager
def syncing() -> Iterator[Callable[[NewFile], None]]:
    """A function that has a complete file synced, in the background, one after the other, while the block runs.

    It may read them, and write others. At its end all are synced; OutputError names one that could not be.
    """
    waiting: SimpleQueue[NewFile | None] = SimpleQueue()
    failures: list[tuple[NewFile, OSError]] = []
    failed = threading.Event()

    def work() -> None:
        while (file := waiting.get()) is not None:
            if not failed.is_set():
                try:
                    file.sync()
                except OSError as error:
                    failures.append((file, error))
                    failed.set()

    worker = threading.Thread(target=work, name="sdconvert-sync", daemon=True)
    running = started([worker])
    try:
        yield waiting.put
    except BaseException:
        failed.set()  # Nobody needs the rest.
        raise
    finally:
        waiting.put(None)
        if running:
            worker.join()
        else:
            work()
    for file, error in failures:
        raise OutputError(f"{file.path}: cannot be written: {error.strerror}. Nothing was left behind") from error


def check_target(path: Path, *, overwrite: bool, source: Origin | None) -> None:
    """OutputError before any work is done, when the output cannot be what was asked for."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        found = None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"{path}: cannot be written: {reason}") from None
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no directory {path.parent}. Create it first")
    if found is None:
        return
    if source is not None and _is_source(path, source):
        raise OutputError(f"{path}: is the source itself. Name another output")
    if stat.S_ISDIR(found.st_mode):
        raise OutputError(f"{path}: is a directory. Name a file in it")
    if not stat.S_ISREG(_target_mode(path, found)):
        raise OutputError(f"{path}: is not a regular file. Name another output")
    if not overwrite:
        raise OutputError(f"{path}: exists already. --overwrite replaces it")


def _target_mode(path: Path, found: os.stat_result) -> int:
    """What a link leads to, if that is no file: replacing the link ``/dev/stdout`` would take it from everybody."""
    if not stat.S_ISLNK(found.st_mode):
        return found.st_mode
    try:
        mode = path.stat().st_mode
    except OSError:  # A link to nowhere, or to itself.
        return stat.S_IFREG
    return stat.S_IFREG if stat.S_ISDIR(mode) else mode


def _is_source(path: Path, source: Origin) -> bool:
    try:
        return source.is_same_file(path.stat())
    except OSError:  # A link to nowhere.
        return False
