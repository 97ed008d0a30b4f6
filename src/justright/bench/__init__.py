"""Measuring decoding: tasks made from real texts, contenders side by side, reports with pictures."""
