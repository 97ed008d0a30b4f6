"""Benchmarks of decoding: tasks from real texts, contenders, and reports with pictures."""
