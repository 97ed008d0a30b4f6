"""Evaluation: lm-eval's tasks on our engine."""
