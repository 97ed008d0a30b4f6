"""Who reasons, and for how long."""
