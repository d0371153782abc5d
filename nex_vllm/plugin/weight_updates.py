"""Notice when a served model gets other weights than it was loaded with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def watch_weights(runner: Any, changed: Callable[[], None]) -> None:
    """Call ``changed`` when the model of this runner gets other weights; call this once the model is loaded.

    Checkpoints, most transfers between processes, and trainers that load into the model themselves all call
    ``model.load_weights``. vLLM's ``reload_weights`` with ``is_checkpoint_format=False`` copies into the parameters
    instead. (So do the engines that ``Worker._start_weight_update`` starts; the worker sees to these.)
    """
    model = runner.get_model()
    plain_load: Callable[..., Any] = model.load_weights
    plain_reload: Callable[..., Any] = runner.reload_weights

    @functools.wraps(plain_load)
    def load_weights(*args: Any, **kwargs: Any) -> Any:
        # Before: a load that fails half-way has changed something too.
        changed()
        return plain_load(*args, **kwargs)

    @functools.wraps(plain_reload)
    def reload_weights(*args: Any, **kwargs: Any) -> Any:
        result = plain_reload(*args, **kwargs)
        changed()
        return result

    model.load_weights = load_weights
    runner.reload_weights = reload_weights
