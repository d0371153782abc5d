"""How vLLM runs and what it says: settings that count only before it, or torch, is imported."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_vllm(verbose: bool) -> None:
    """Choose how much vLLM says, and keep its engine in this process; must come before torch and vLLM are imported.

    In one process the order of all steps is given by the order of the requests, so that a seeded run is repeatable.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if verbose else "ERROR")
    # The CPU backend would take nearly all memory for its cache, and refuse to start where others have some of it; GPUs
    # do not read this. 4 GiB hold tens of thousands of tokens of a model that a CPU can serve.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # vLLM warns while it is imported, before it sets its own logging up.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    warnings.simplefilter("ignore")
