"""Rank rules, one a file: each registers itself under its name (see docs/switch.md, "Add a rank rule")."""
