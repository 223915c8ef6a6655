"""Fuzzing: `targets` says what is held, `corpus` where it begins, `__main__` is the long run."""
