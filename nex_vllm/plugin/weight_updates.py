"""Notice when a served model gets other weights than it was loaded with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def watch_weights(runner: Any, changed: Callable[[], None]) -> None:
    """Call ``changed`` before the model of this runner gets other weights; to be laid once it has been loaded.

    Checkpoints, the transfers of weights between processes, and trainers that load into the model themselves all come
    by ``model.load_weights``, except for those that copy into its parameters: vLLM's ``reload_weights`` with
    ``is_checkpoint_format=False``, and the engines that ``Worker._start_weight_update`` starts.
    """
    _call_before(runner.get_model(), "load_weights", changed)
    _call_before(runner, "reload_weights", changed)


def _call_before(owner: Any, name: str, notify: Callable[[], None]) -> None:
    plain: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(plain)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        notify()
        return plain(*args, **kwargs)

    setattr(owner, name, wrapper)
