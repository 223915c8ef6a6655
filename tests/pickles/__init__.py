"""The pickle machine and what it builds."""
