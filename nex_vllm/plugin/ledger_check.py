"""Look up every name of the ledger in the vLLM that is installed."""

from __future__ import annotations

import dis
import importlib
import inspect
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.plugin.ledger import LEDGER, Entry


def require_all() -> None:
    """See that this vLLM has everything that NEX relies upon.

    Raises:
        InputError: something is missing or takes other parameters; all of it is named.
    """
    problems = [problem for problem in map(problem_of, LEDGER) if problem is not None]
    if problems:
        from vllm import __version__

        raise InputError(
            f"vLLM {__version__} is not as NEX needs it: {'; '.join(problems)}. Use vLLM 0.32 or 0.33, or serve "
            "without NEX."
        )


def problem_of(entry: Entry) -> str | None:
    """Return what is wrong with an entry's name in this vLLM; None if nothing is."""
    try:
        found = _look_up(entry.target)
    except AttributeError:
        return f"{entry.target} is missing ({entry.why})"
    except ImportError as error:
        return f"{entry.target} cannot be imported: {error} ({entry.why})"
    if entry.parameters:
        given = tuple(name for name in inspect.signature(found).parameters if name != "cls")
        if given[: len(entry.parameters)] != entry.parameters:
            return f"{entry.target} takes {', '.join(given) or 'nothing'}, not {', '.join(entry.parameters)}"
    if not entry.sets:
        return None
    stored = {step.argval for step in dis.get_instructions(inspect.unwrap(found)) if step.opname == "STORE_ATTR"}
    unset = [name for name in entry.sets if name not in stored]
    return f"{entry.target} no longer sets {', '.join(unset)} ({entry.why})" if unset else None


def _look_up(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        # Fields without a default are no attributes of their class.
        fields = (
            *getattr(found, "__struct_fields__", ()),
            *getattr(found, "_fields", ()),
            *getattr(found, "__dataclass_fields__", ()),
        )
        found = part if part in fields else getattr(found, part)
    return found
