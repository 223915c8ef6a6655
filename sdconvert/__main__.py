"""``python -m sdconvert``."""

from .cli import main

raise SystemExit(main())
