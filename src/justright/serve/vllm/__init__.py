"""`justright serve --engine vllm`: the same model and switch on vLLM, by its public extension points."""
