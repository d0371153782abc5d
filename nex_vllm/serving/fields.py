"""NEX in the bodies of HTTP requests and responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nex_vllm.choosing.options import FIELDS, parse_options
from nex_vllm.choosing.selection import Candidate, Selection
from nex_vllm.errors import InputError

REQUEST_FIELDS = ("nex_select", "nex_return_candidates")


def nex_fields(extra_fields: Mapping[str, Any] | None, xargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Gather the NEX fields of a request body, from its top level and from ``vllm_xargs``.

    Raises:
        InputError: for an unknown ``nex_`` field, one that only the Python API has, one given twice with different
            values, or a value of the wrong type.
    """
    top = {name: value for name, value in (extra_fields or {}).items() if name.startswith("nex_")}
    nested = {name: value for name, value in (xargs or {}).items() if name.startswith("nex_")}
    for name in top.keys() & nested.keys():
        if top[name] != nested[name]:
            raise InputError(f"{name} is given at the top level and, with another value, in vllm_xargs; give it once.")
    fields = {**nested, **top}
    for name in fields:
        if name not in REQUEST_FIELDS:
            reason = "is not offered over HTTP" if name in FIELDS else "is unknown"
            raise InputError(f"{name} {reason}; a request may have {' and '.join(REQUEST_FIELDS)}.")
    parse_options(fields)
    return {name: value for name, value in fields.items() if value is not None}


def returns_one_choice(fields: Mapping[str, Any]) -> bool:
    """Whether a request with these fields gets the winner only."""
    options = parse_options(fields)
    return options is not None and options.selector is not None and not options.return_all


def returns_candidates(fields: Mapping[str, Any]) -> bool:
    """Whether a request with these fields gets every candidate's text and tokens."""
    options = parse_options(fields)
    return options is not None and options.return_candidates


def selection_body(selections: Sequence[Selection], *, with_candidates: bool) -> Any:
    """Return the response's ``nex``: an object, or for a request with several prompts a list of them in order."""
    bodies = [_selection_body(each, with_candidates=with_candidates) for each in selections]
    return bodies[0] if len(bodies) == 1 else bodies


def _selection_body(selection: Selection, *, with_candidates: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "selected": selection.selected,
        "selector": selection.selector,
        "candidates": [
            _candidate_body(each, with_text=with_candidates, with_answer=selection.extract is not None)
            for each in selection.candidates
        ],
    }
    if selection.unscored is not None:
        body["unscored"] = selection.unscored
    return body


def _candidate_body(candidate: Candidate, *, with_text: bool, with_answer: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "index": candidate.index,
        "score": candidate.score,
        "pos_mass": candidate.pos_mass,
        "abs_mass": candidate.abs_mass,
        "tot_mass": candidate.tot_mass,
        "num_tokens": candidate.num_tokens,
        "num_scored_tokens": candidate.num_scored_tokens,
        "finish_reason": candidate.finish_reason,
    }
    if candidate.reasoning_ended is not None:
        body["reasoning_ended"] = candidate.reasoning_ended
    if with_answer:
        body["answer"] = candidate.answer
    if with_text:
        body |= {"text": candidate.text, "token_ids": candidate.token_ids}
    return body


def num_generated_tokens(selections: Sequence[Selection]) -> int:
    """Return how many tokens all candidates have together: what the request cost."""
    return sum(candidate.num_tokens for each in selections for candidate in each.candidates)
