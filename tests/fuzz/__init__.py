"""Fuzzing: bytes in, a result or an SdconvertError out, within 5 seconds and 512 MB, and nothing else.

`targets` says what is fuzzed, `corpus` where it begins, `mutate` is a fuzzer in plain Python, `__main__` the long run.
A container is a target by being in ``formats.FORMATS``, under its NAME; its seeds are the files of ``tests/hostile``
that it recognises, at least six, so the cases for a new container are its seed corpus too. What is no container (a
directory layout, an index, an archive with a layout of its own) needs a function in `targets.TARGETS` and the names of
its cases in `corpus.BY_NAME`, or its seeds in `layouts.LAYOUTS`; the fuzzer gets at each file by `framing`.
The short runs in ``test_fuzz.py`` take every target by themselves. What is found becomes a case in ``tests/hostile``.
"""
