"""`justright serve`: one model behind an OpenAI-compatible HTTP API, on the embedded engine."""
