"""The choice of one request, from its candidates' signals."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from nex_vllm.algorithm.selectors import draws, get_selector
from nex_vllm.algorithm.signals import Values
from nex_vllm.choosing.offer import EngineOffer


def choose(
    name: str, offer: EngineOffer, signals: Mapping[str, Values], finished: Sequence[bool], request_id: str
) -> int | None:
    """Return the place of the candidate that a selector chooses; None where it can rank none that finished.

    Args:
        name: the selector.
        offer: what the engine has, its learned selector among it.
        signals: by name, the value of each candidate; what the selector reads is there.
        finished: whether each candidate came to an end of its own.
        request_id: what ``random`` draws by, so that a request's choice can be repeated.
    """
    selector = get_selector(name)
    values: Sequence[float | None]
    if selector.signal == "learned":
        values = offer.learned.values(signals, finished) if offer.learned is not None else [None] * len(finished)
    elif selector.signal == "draw":
        values = draws(zlib.crc32(request_id.encode()), len(finished))
    elif selector.signal == "place":
        values = range(len(finished))
    else:
        values = signals[selector.signal]
    if not any(ended and value is not None for ended, value in zip(finished, values, strict=True)):
        return None
    return selector.select(values, finished)
