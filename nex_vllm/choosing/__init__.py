"""What a request asks for, its candidates and the choice among them: numpy, neither torch nor vLLM."""
