"""The door: what a checkpoint is, where it comes from, how it is read and written."""
