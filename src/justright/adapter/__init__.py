"""Slow and fast thinking in one model (Gold-Switch, arXiv:2510.06750)."""
