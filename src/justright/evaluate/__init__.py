"""Evaluation with lm-eval's tasks on justright's engine."""

from justright.callable_package import make_callable

make_callable(__name__, "run.evaluate")
