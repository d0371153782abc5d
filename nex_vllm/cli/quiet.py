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
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_cpu_cache_gib()))
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # vLLM warns while it is imported, before it sets its own logging up.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of worker processes


def _cpu_cache_gib() -> int:
    """Return a quarter of the machine's memory, 1 to 16 GiB, for vLLM's cache on CPUs; GPUs do not read it.

    By itself the CPU backend asks for nearly all memory, and refuses to start where other programs have some of it.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(total >> 32, 1), 16)
