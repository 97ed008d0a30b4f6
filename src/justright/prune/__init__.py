"""Pruning, structured then unstructured (STUN, arXiv:2409.06211): experts first, single weights second."""
