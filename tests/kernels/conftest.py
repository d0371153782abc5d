"""Kernels are interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _interpreted_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        # Imported that way in tests/conftest.py; the interpreter asks again when it runs.
        monkeypatch.setenv("TRITON_INTERPRET", "1")
