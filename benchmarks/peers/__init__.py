"""sdconvert beside what people use today: ``python -m benchmarks.peers``."""
