"""The first line that runs: an interrupt while the command `sdconvert` is still being imported ends it without a word.

Nothing has been done then, so the system's own way to end is the right one; Python's would show a traceback of
its import machinery. `cli` installs handlers that tidy up. In other programs nothing happens here.
"""

# Not `signal`: its import takes milliseconds, in which it could happen.
import _signal  # type: ignore[import-not-found]
import sys

_NAMES = ("sdconvert", "hf-sdconvert")


def is_command(argv: list[str], program: str) -> bool:
    """Whether a process that was started with `argv` is the command: as a script, or by the interpreter's ``-m``.

    `program` is ``sys.argv[0]``, which is ``-m`` itself while the package is imported for that. Processes that it
    starts in turn, to convert many files, are not: those are ended by the one that started them.
    """
    if program == "-m":
        return argv[argv.index("-m") + 1 :][:1] == ["sdconvert"]
    return any(word.rpartition("/")[2] in _NAMES for word in argv[1:2])


_was = _signal.getsignal(_signal.SIGINT)
if _was is _signal.default_int_handler and is_command(sys.orig_argv, "".join(sys.argv[:1])):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
