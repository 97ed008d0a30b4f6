"""Training a drafter: its data, written by the verifier itself, its losses, and the [SPEC] token."""
