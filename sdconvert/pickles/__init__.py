"""Reading pickles without running them: `machine` builds `nodes`, `rebuild` gives the known ones a meaning."""
