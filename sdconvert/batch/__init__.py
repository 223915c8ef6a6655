"""Many conversions, on this machine or many: small jobs out, small outcomes in."""

from .driver import convert_many
from .executors import Engine, RayExecutor
from .jobs import Job, Options, sharded, state_of
from .manifest import Manifest, read
from .sources import common_directory, jobs
from .summary import Failure, Summary
from .task import Outcome, Written, run

__all__ = [
    "Engine",
    "Failure",
    "Job",
    "Manifest",
    "Options",
    "Outcome",
    "RayExecutor",
    "Summary",
    "Written",
    "common_directory",
    "convert_many",
    "jobs",
    "read",
    "run",
    "sharded",
    "state_of",
]
