"""Containers, one file each."""
