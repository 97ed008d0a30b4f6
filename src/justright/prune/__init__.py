"""Pruning, structured then unstructured (STUN, arXiv:2409.06211): experts first, single weights second."""

from justright.callable_package import make_callable

make_callable(__name__, "pipeline.prune")
