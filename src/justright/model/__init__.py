"""A checkpoint as a model: its decoder layers, matrices and experts."""
