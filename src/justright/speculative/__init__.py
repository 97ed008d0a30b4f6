"""Drafters: they propose the next tokens for the engine to verify."""
