"""The specification of sdconvert, as tests. They mirror the package; torch, safetensors, numpy and pickle are the oracles."""
