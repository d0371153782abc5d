"""The vLLM plugin: the only room that imports vLLM. Every private name it touches is in its ledger."""
