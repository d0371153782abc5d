"""Every vLLM private name the project touches, in one place."""
