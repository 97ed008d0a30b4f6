"""justright: open-weight language models, not too big, not too slow, not lost in thought."""

__version__ = "0.1.0"
