"""Publishing to the Hub, and looking at what others propose to publish there."""

from __future__ import annotations

from .publication import Publication, Sent
from .publish import push
from .review import Review, review

__all__ = ["Publication", "Review", "Sent", "push", "review"]
