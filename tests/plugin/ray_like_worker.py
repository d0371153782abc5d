"""A worker of somebody else's, which calls the model runner itself, as the legacy Ray executor does."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class RayLikeWorker(CPUWorker):
    """Runs steps past the worker's own methods."""

    num_steps = 0

    def execute_model(self, scheduler_output: Any) -> Any:
        type(self).num_steps += 1
        return self.model_runner.execute_model(scheduler_output, None)

    def sample_tokens(self, grammar_output: Any) -> Any:
        return self.model_runner.sample_tokens(grammar_output)
