"""The specification of sdconvert. Tests mirror the package; torch, safetensors, numpy and pickle are the oracles."""
