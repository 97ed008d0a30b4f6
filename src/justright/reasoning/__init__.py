"""Reasoning control: which requests reason, and for how long."""
