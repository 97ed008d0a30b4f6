"""Calibration: token batches from texts, layers run one at a time, and the statistics they yield."""
