"""A Triton backend by name only: vLLM's CPU build asks whether there is one before it runs Model Runner V2.

With this folder's parent on PYTHONPATH, Triton finds it by the entry point beside it. Kernels must be interpreted
(TRITON_INTERPRET=1): it compiles nothing.
"""
