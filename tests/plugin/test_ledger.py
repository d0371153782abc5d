"""The vLLM names that NEX relies upon are there and take what we pass."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from nex_vllm.plugin.ledger import LEDGER, Entry


def _resolve(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        fields = (
            *getattr(found, "__struct_fields__", ()),
            *getattr(found, "_fields", ()),
            *getattr(found, "__dataclass_fields__", ()),
        )
        found = part if part in fields else getattr(found, part)
    return found


@pytest.mark.parametrize("entry", LEDGER, ids=lambda entry: entry.name)
def test_vllm_still_has(entry: Entry) -> None:
    found = _resolve(entry.target)
    if entry.parameters:
        given = [name for name in inspect.signature(found).parameters if name != "cls"]
        assert tuple(given[: len(entry.parameters)]) == entry.parameters


def test_every_entry_has_its_own_name() -> None:
    assert len({entry.name for entry in LEDGER}) == len(LEDGER)
