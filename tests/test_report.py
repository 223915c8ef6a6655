"""What a report says to a person."""

from __future__ import annotations

import pytest

from sdconvert.report import human


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (999_994, "999.99 kB"),
        (999_996, "1.00 MB"),
        (498_010_000, "498.01 MB"),
        (999_999_999, "1.00 GB"),
        (12_345_678_900_000, "12,345.68 GB"),
    ],
)
def test_bytes_are_said_in_the_units_of_disks_and_never_as_1000_of_one(nbytes: int, said: str) -> None:
    assert human(nbytes) == said
