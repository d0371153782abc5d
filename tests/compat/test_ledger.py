"""The vLLM names that NEX relies upon are there and take what we pass."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from nex_vllm.compat.ledger import LEDGER, Entry

ROOT = Path(__file__).parents[2]


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


def test_only_engine_and_compat_import_vllm_internals() -> None:
    allowed = {"engine", "compat"}
    for path in (ROOT / "nex_vllm").rglob("*.py"):
        room = path.relative_to(ROOT / "nex_vllm").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            internal = [name for name in names if name.startswith("vllm.")]
            assert room in allowed or not internal, f"{path} imports {internal}"
