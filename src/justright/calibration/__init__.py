"""Calibration: texts to token batches, layers one at a time, and what is counted on the way."""
