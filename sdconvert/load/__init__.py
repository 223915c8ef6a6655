"""Weights as live tensors. torch is imported inside the functions of this package, never with it."""
