"""One response as the page's script takes it, and how many of them a page holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nex_vllm.algorithm import Judgement, Masses
from nex_vllm.algorithm.credit import CycleCredit
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.storage import CachedResponse

PAGE_BYTES = 24 << 20
"""Most bytes of responses in a page; a response is there whole or not at all."""

MAX_PROMPT = 4000
"""Characters of a prompt that are shown."""

# What could end the script element, or be read as a line end or markup in it. JSON has these characters in strings
# only, where an escape means the same.
_ESCAPES = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


def encode_json(value: Any) -> str:
    """Return JSON that can stand in a script element of an HTML page; NaN is refused."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


@dataclass(slots=True)
class ShownResponses:
    """The responses that a page holds: the first ones, up to a number and up to a size.

    ``index`` has what the page lists and sorts by, ``encoded`` the JSON of each, ``num_seen`` counts the others too.
    ``wanted`` are the ids of those that are shown, where not simply the first are.
    """

    most: int
    wanted: frozenset[str] | None = None
    most_bytes: int = PAGE_BYTES
    index: list[dict[str, Any]] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    num_seen: int = 0
    num_estimated: int = 0
    num_bytes: int = 0
    is_full: bool = False

    def add(self, entry: dict[str, Any], details: dict[str, Any]) -> None:
        """Add a response, unless the page is full: then it, and all that come after it, are only counted."""
        self.num_seen += 1
        if not self.wants(entry["id"]):
            return
        encoded = encode_json({**entry, **details})
        size = len(encoded.encode())
        if self.num_bytes + size > self.most_bytes:
            self.is_full = True
            return
        self.index.append(entry)
        self.encoded.append(encoded)
        self.num_bytes += size
        self.num_estimated += not details["exact"]

    def wants(self, response: str) -> bool:
        """Whether the response with this id would be shown if it fits."""
        has_room = not self.is_full and len(self.index) < self.most
        return has_room and (self.wanted is None or response in self.wanted)

    def sort(self, place_of: Mapping[str, int]) -> None:
        """Put the responses in the order of the places of their ids."""
        order = sorted(range(len(self.index)), key=lambda i: place_of[self.index[i]["id"]])
        self.index = [self.index[i] for i in order]
        self.encoded = [self.encoded[i] for i in order]


def describe_response(
    response: CachedResponse | None,
    rows: ResponseRows,
    judgement: Judgement,
    masses: Masses | None,
    row_texts: tuple[list[str], bool] | None,
    labels: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (what the page lists of a response, what it shows besides).

    ``labels`` are added to the first: what a comparison knows of it, which holds where the two differ. ``masses`` are
    None without weights. Without a text (``row_texts`` None) the rows are shown as numbers alone.
    """
    entry = {
        "id": rows.response,
        "score": masses.score if masses is not None and masses.abs > 0.0 else None,
        "bad": masses.bad if masses is not None else None,
        "tokens": rows.num_tokens,
        "finish": response.finish_reason if response is not None else None,
        "cycles": len(judgement.cycles),
        **labels,
    }
    counts = np.rint(judgement.slopes * rows.tokens).astype(np.int64)
    texts, exact = row_texts if row_texts is not None else (None, True)
    details = {
        "prompt": prompt_text(response),
        "texts": texts,
        "exact": exact,
        "lengths": rows.tokens.tolist(),
        "new": counts.tolist(),
        "phases": "".join("E" if explore else "X" for explore in judgement.explore.tolist()),
        "entropy": [rounded(value) for value in rows.entropy.tolist()],
        "judged": [
            [
                cycle.explore,
                cycle.exploit,
                cycle.stop,
                *(rounded(x) for x in (credit.reuse_share, credit.progress, credit.consolidation, credit.strength)),
                verdict(credit),
            ]
            for cycle, credit in zip(judgement.cycles, judgement.credits, strict=True)
        ],
    }
    return entry, details


def describe_unrecorded(
    response: str, text: str, prompt: str | None, labels: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same two of a candidate whose rows are not at hand: it has a text and no phases."""
    entry = {"id": response, "score": None, "bad": None, "tokens": 0, "finish": None, "cycles": 0, **labels}
    nothing: dict[str, Any] = {"lengths": [], "new": [], "phases": "", "entropy": [], "judged": []}
    return entry, {"prompt": prompt, "texts": [text], "exact": True, **nothing}


def verdict(credit: CycleCredit) -> str:
    """Return what the paper calls a cycle: effective or redundant, gated where the strength gate keeps it out."""
    if not credit.counts:
        return "gated"
    return "effective" if credit.effective else "redundant"


def rounded(value: float, digits: int = 5) -> float | None:
    """Return a number with that many significant digits, None where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def prompt_text(response: CachedResponse | None) -> str | None:
    """Return a prompt, or a chat as lines `role: content`, cut to 4,000 characters; None where it is not known."""
    if response is None:
        return None
    if response.prompt is not None:
        text = response.prompt
    elif response.messages is not None:
        text = "\n".join(f"{message.get('role', '?')}: {_content(message)}" for message in response.messages)
    else:
        return None
    more = len(text) - MAX_PROMPT
    return text if more <= 0 else f"{text[:MAX_PROMPT]} … ({more} more characters)"


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts: Sequence[Any] = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text if isinstance(text, str) else "(not text)" for text in texts)
