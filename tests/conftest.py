"""What every test may ask for: the corpus, a way to convert an object, and hypothesis without a clock."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import sdconvert
from tests.corpus import CORPUS
from tests.hub_server.fixtures import file_server, hub, pytest_runtest_makereport  # noqa: F401
from tests.outputs import contents

# Ignored where the tests run in the background of a shell, and then by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The client of the Hub reads these once, when it is imported. No test of this process sees the Hub, or a real token.
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
    del os.environ[_name]
os.environ |= {
    "HF_HOME": "/proc/none",  # Nothing is there, and nothing can be.
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_XET": "1",
    "NO_PROXY": "127.0.0.1,localhost",
}

# Machines are shared and slow at times: no deadlines. `tmp_path` is fine inside a property, it is only written to.
settings.register_profile(
    "sdconvert",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.load_profile("sdconvert")

Conversion = tuple[sdconvert.Report, dict[str, torch.Tensor]]
Converted = Callable[..., Conversion]


@pytest.fixture(scope="session", autouse=True)
def _one_thread_of_torch() -> None:
    """Workers run side by side; torch's own threads would fight over the processors."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The directory of real checkpoints; set SDCONVERT_CORPUS where it is not beside the repository."""
    if not (CORPUS / "manifest.json").is_file():
        pytest.skip(f"the corpus of real checkpoints is not at {CORPUS} (SDCONVERT_CORPUS names another place)")
    return CORPUS


@pytest.fixture
def converted(tmp_path: Path) -> Converted:
    """`converted(obj)` saves an object with torch.save, converts it, and gives the report and the tensors."""

    def convert(obj: Any, *, save: dict[str, Any] | None = None, **options: Any) -> Conversion:
        source, output = tmp_path / "source.pt", tmp_path / "output.safetensors"
        torch.save(obj, source, **(save or {}))
        output.unlink(missing_ok=True)
        report = sdconvert.convert(source, output, **options)
        return report, contents(output)

    return convert


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """`umask(0o027)` for the length of a test."""
    before = os.umask(0o022)
    os.umask(before)
    yield lambda mask: [os.umask(mask), None][1]
    os.umask(before)
