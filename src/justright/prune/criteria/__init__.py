"""Pruning criteria, one a file: each registers itself under its name (see docs/prune.md, "Add a criterion")."""
