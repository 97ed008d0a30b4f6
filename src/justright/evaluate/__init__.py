"""Evaluation: lm-eval's tasks on our engine."""

from justright.callable_package import make_callable

make_callable(__name__, "run.evaluate")
