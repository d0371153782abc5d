"""Engines for the tests, on either of vLLM's model runners, each start a few seconds instead of thirty.

vLLM's CPU platform spawns the engine's processes, so each imports vLLM anew. Here they are forked from a process that
has imported it; what they run and what they send each other is vLLM's own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
TRITON_CPU = Path(__file__).parent / "triton_cpu"
RUNNERS = {
    "v1": "vllm.v1.worker.cpu_model_runner.CPUModelRunner",
    "v2": "vllm.v1.worker.cpu.model_runner.CPUModelRunner",
}
_EVERYWHERE = ["vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker"]
PRELOADED = {"v1": _EVERYWHERE, "v2": [*_EVERYWHERE, "nex_triton_cpu.masks"]}


def runner_environment(runner: str) -> dict[str, str]:
    """Return what the environment of an engine's processes has, from their start, for this model runner."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    common = {"VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2"))}
    if runner == "v1":
        return {**common, "PYTHONPATH": os.pathsep.join(path)}
    # Model Runner V2 computes its inputs and samples with Triton kernels; they are interpreted.
    return {**common, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(TRITON_CPU), *path])}


class _WarmProcess(ForkServerProcess):
    """A forked process with the environment of whoever started it, not the fork server's."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        # How the engine core starts its workers.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        super().run()


class _WarmContext(ForkServerContext):
    Process = _WarmProcess


class Engines:
    """Starts engines on demand and ends the one before: memory and cores are scarce."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._llm: Any = None
        self._servers: dict[str, forkserver.ForkServer] = {}

    def __call__(self, model: Path, nex: dict[str, Any] | None, runner: str = "v1", **options: Any) -> Any:
        """Return the ``LLM`` of these settings; the one that runs, if it has the same."""
        key = repr((str(model), nex, runner, sorted(options.items(), key=str)))
        if key != self._key:
            self.close()
            settings = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 32, "enforce_eager": True, **options}
            if nex is not None:
                settings["additional_config"] = {"nex": nex}
            self._llm = self._start(str(model), runner, settings)
            self._key = key
        return self._llm

    def _start(self, model: str, runner: str, settings: dict[str, Any]) -> Any:
        from vllm import LLM

        # pytest shows the arguments of what failed; vLLM's own description would ask a worker, and wait.
        LLM.__repr__ = object.__repr__
        with self._processes_of(runner):
            llm = LLM(model, disable_log_stats=False, **settings)
            assert llm.collective_rpc(_runner_of) == [RUNNERS[runner]] * settings.get("tensor_parallel_size", 1)
        return llm

    @contextmanager
    def _processes_of(self, runner: str) -> Iterator[None]:
        """Let engine processes be forked from a server that runs in the environment of this model runner."""
        with (
            patch.dict(os.environ, runner_environment(runner)),
            patch("vllm.v1.engine.utils.get_mp_context", _WarmContext),
            # This process only checks that there is a backend; the engine's processes have one.
            patch("vllm.config.vllm.HAS_TRITON", runner == "v2"),
        ):
            if runner not in self._servers:
                self._servers[runner] = forkserver.ForkServer()
                self._servers[runner].set_forkserver_preload(PRELOADED[runner])
            with patch.object(forkserver, "connect_to_new_process", self._servers[runner].connect_to_new_process):
                yield

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = self._key = None
            gc.collect()


def _runner_of(worker: Any) -> str:
    kind = type(worker.model_runner)
    return f"{kind.__module__}.{kind.__qualname__}"
