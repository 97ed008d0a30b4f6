"""The decode engine: our own loop around any transformers causal language model."""
