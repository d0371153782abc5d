"""From a forward pass's rows to a step's record: torch and the kernels, without vLLM."""
