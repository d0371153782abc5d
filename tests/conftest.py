"""What every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides once, when it and the kernels are imported, whether they are interpreted (on CPU tensors).
    os.environ["TRITON_INTERPRET"] = "1"
    import nex_vllm.kernels.gpu
    import nex_vllm.kernels.gpu_tap  # noqa: F401

    # Engines that tests start are spared it.
    del os.environ["TRITON_INTERPRET"]

# Small engines: one GiB of cache, and no chatter between the tests' own lines.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    """Return the folder of the trained model that the repository ships."""
    return ROOT / "examples" / "countdown" / "model"


@pytest.fixture(scope="session")
def countdown() -> Path:
    """Return the folder of the Countdown example."""
    return ROOT / "examples" / "countdown"


@pytest.fixture(autouse=True)
def _environment_as_it_was() -> Iterator[None]:
    """Undo what a test's program code sets in the environment: the command line chooses how engines run by it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
