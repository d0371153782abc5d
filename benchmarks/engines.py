"""An engine in a process of its own, so that several can be measured side by side.

No two sides share a process: plain vLLM is measured in processes that have not loaded the plugin, which
:meth:`Engine.wait` checks.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prompts = Sequence[str] | Sequence[dict[str, list[int]]]

# By kind of engine, what its front end has imported: the entry point's module, the package.
_MODULES = {"plain": (False, False), "installed": (True, False), "nex": (True, True)}


@dataclass(frozen=True)
class Round:
    """One round of requests: how long they took, and how many tokens were made."""

    seconds: float
    num_tokens: int


@dataclass(frozen=True)
class _Failure:
    text: str


def without_plugin() -> dict[str, str]:
    """Return an environment in which vLLM loads every general plugin but ours."""
    others = {each.name for each in importlib.metadata.entry_points(group="vllm.general_plugins")} - {"nex"}
    return {"VLLM_PLUGINS": ",".join(sorted(others))}


class Engine:
    """One engine: ``plain`` (plugin not loaded), ``installed`` (loaded, not turned on) or ``nex`` (turned on)."""

    def __init__(self, kind: str, model: Path, options: Mapping[str, Any], weights: Path) -> None:
        """Start it without waiting; :meth:`wait` waits until it is ready."""
        self.kind = kind
        self.facts: dict[str, Any] = {}
        options = dict(options)
        if kind == "nex":
            options["additional_config"] = {"nex": {"weights": str(weights)}}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        environment = without_plugin() if kind == "plain" else {}
        self._process = context.Process(target=_serve, args=(theirs, str(model), options, environment))
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Wait until the engine takes requests, and check that it has imported what its kind does."""
        self.facts = self._receive()
        modules = (self.facts.pop("plugin_loaded"), self.facts.pop("package_loaded"))
        if modules != _MODULES[self.kind]:
            raise RuntimeError(
                f"The engine {self.kind!r} has entry point and package loaded: {modules}, expected "
                f"{_MODULES[self.kind]}; is nex-vllm installed here (pip install -e .)?"
            )

    def run(self, prompts: Prompts, params: Mapping[str, Any]) -> Round:
        """Run one round of requests, all given at once."""
        self._connection.send((prompts, dict(params)))
        answer: Round = self._receive()
        return answer

    def stop(self) -> None:
        """End the engine and its process."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._connection.send(None)
            self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=10)

    def _receive(self) -> Any:
        ended = f"The process of the engine {self.kind!r} ended without an error message."
        while not self._connection.poll(1):
            # An engine process that lives longer than its front end keeps the pipe open.
            if not self._process.is_alive() and not self._connection.poll(0):
                raise RuntimeError(ended)
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError(ended) from None
        if isinstance(answer, _Failure):
            raise RuntimeError(f"The engine {self.kind!r} failed:\n{answer.text}")
        return answer


def _serve(connection: Any, model: str, options: dict[str, Any], environment: dict[str, str]) -> None:
    """Start the engine and run rounds until None arrives."""
    os.environ.update(environment)
    # Exit in an orderly way, because the engine's own process would outlive a front end that is killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    llm: Any = None
    try:
        from vllm import LLM

        llm = LLM(model, **options)
        connection.send(_facts(llm))
        while (request := connection.recv()) is not None:
            connection.send(_round(llm, *request))
    except EOFError:
        pass
    except BaseException:
        connection.send(_Failure(traceback.format_exc()))
    finally:
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()


def _facts(llm: Any) -> dict[str, Any]:
    """Return how vLLM configured the engine, and what the front end has imported."""
    config = llm.llm_engine.vllm_config
    mode = getattr(config.compilation_config, "cudagraph_mode", None)
    # The CPU backend runs V1 whatever the configuration would choose on a GPU.
    is_v2 = config.device_config.device_type != "cpu" and config.use_v2_model_runner
    return {
        "plugin_loaded": "nex_vllm_plugin" in sys.modules,
        "package_loaded": "nex_vllm" in sys.modules,
        "model_runner": "V2" if is_v2 else "V1",
        "async_scheduling": bool(config.scheduler_config.async_scheduling),
        "cudagraph_mode": getattr(mode, "name", str(mode)),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
    }


def _round(llm: Any, prompts: Prompts, params: dict[str, Any]) -> Round:
    from vllm import SamplingParams

    sampling = SamplingParams(**params)
    start = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    if "extra_args" not in params:
        return Round(seconds, sum(len(each.token_ids) for output in outputs for each in output.outputs))
    candidates = [each for output in outputs for each in output.nex.candidates]
    if any(each.score is None for each in candidates):
        raise RuntimeError("a candidate came back without a score, so this would not time selecting")
    return Round(seconds, sum(each.num_tokens for each in candidates))
