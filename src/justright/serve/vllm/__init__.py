"""`justright serve --engine vllm`: the same model and switch on vLLM, through its public extension points."""
