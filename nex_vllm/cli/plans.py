"""From the flags of a command to its plan, and the refusal of flags that would have no effect."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

import typer

from nex_vllm.cli.engine_options import words_after_dashes
from nex_vllm.cli.quiet import quiet_vllm
from nex_vllm.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from nex_vllm.cli.recording import RecordingPlan

    Plan = TypeVar("Plan", bound=DataclassInstance)


def fill_plan(kind: type[Plan], context: typer.Context) -> Plan:
    """Fill a plan with the flags of the same names and the words after ``--``."""
    given = {**context.params, "engine_words": words_after_dashes(context)}
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})


def recording_plan(context: typer.Context) -> RecordingPlan:
    """Return the plan of a command that records, and let vLLM say what was asked for."""
    from nex_vllm.cli.recording import RecordingPlan

    quiet_vllm(context.params["verbose"])
    return fill_plan(RecordingPlan, context)


_LEARNING_FLAGS = frozenset(
    {"out", "from_cache", "top_k", "row_tokens", "credit", "rho", "min_run", "json_out", "force", "verbose"}
)
TABLE_FLAGS = frozenset({"source", "out", "selectors", "selector_file", "force", "verbose"})


def refuse_recording_flags(context: typer.Context) -> None:
    """Refuse the model, flags of the recording and engine options beside --from-cache."""
    problem = "has no effect on what --from-cache learns from, which is recorded already"
    refuse_flags(context, _LEARNING_FLAGS, problem, " or leave out --from-cache")


def refuse_flags(context: typer.Context, allowed: frozenset[str], problem: str, other: str = "") -> None:
    """Refuse flags that would have no effect, rather than let the user believe that they had.

    Raises:
        InputError: a flag that is not ``allowed``, or an engine option, was given.
    """
    given = [parameter for parameter in context.command.params if _is_given(context, parameter.name or "")]
    shown = ["MODEL" if each.name == "model" else each.opts[0] for each in given if each.name not in allowed]
    shown += ["an engine option after --"] if words_after_dashes(context) else []
    if shown:
        raise InputError(f"{shown[0]} {problem}; leave it out{',' if other else ''}{other}")


def given_number(context: typer.Context, name: str) -> int | None:
    """Return the number that a flag was given; None where its default would stand."""
    return context.params[name] if _is_given(context, name) else None


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
