"""Get the weights out of any PyTorch checkpoint, safely, and put them where they are wanted."""

from . import starting as _starting  # noqa: F401 - before all that takes time

# isort: split
from .checkpoint import Candidate, Skipped, StateDict
from .convert import convert
from .errors import ChoiceError, MismatchError, OutputError, SdconvertError, UnreadableError, UnsupportedError
from .hub import Publication, Review, Sent, push, review
from .inspect import inspect
from .inspection import CandidateFacts, DTypeFacts, Inspection, TensorFacts
from .limits import Limits
from .load import Cast, LoadResult, Misfit, load, load_into, skeleton
from .names import Names
from .opening import OpenCheckpoint, open  # noqa: A004 - sdconvert.open is its name
from .report import Output, Report
from .save import save
from .tensor import TensorRef
from .verify import Difference, Verification, digest, verify

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "CandidateFacts",
    "Cast",
    "ChoiceError",
    "DTypeFacts",
    "Difference",
    "Inspection",
    "Limits",
    "LoadResult",
    "Misfit",
    "MismatchError",
    "Names",
    "OpenCheckpoint",
    "Output",
    "OutputError",
    "Publication",
    "Report",
    "Review",
    "SdconvertError",
    "Sent",
    "Skipped",
    "StateDict",
    "TensorFacts",
    "TensorRef",
    "UnreadableError",
    "UnsupportedError",
    "Verification",
    "__version__",
    "convert",
    "digest",
    "inspect",
    "load",
    "load_into",
    "open",
    "push",
    "review",
    "save",
    "skeleton",
    "verify",
]
