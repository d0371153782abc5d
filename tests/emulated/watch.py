"""What an engine in this process computes, step by step, seen from outside NEX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nex_vllm.kernels import naive
from nex_vllm.recording.tapped import TappedActivation


@dataclass
class Step:
    """One forward pass.

    Attributes:
        scheduler_output: what it was scheduled by; its identity leads from the runner to the scheduler.
        requests: the batch, in order.
        first: int [requests + 1], each request's first row among those that are sampled from.
        products: [rows sampled from, neurons], what the down-projections read there.
        logprobs: float32 [rows sampled from, vocabulary].
        recorded: NEX's record as it was when sampling began.
    """

    scheduler_output: Any
    requests: list[str]
    first: list[int]
    products: Tensor
    logprobs: Tensor
    recorded: Tensor


@dataclass
class Delivered:
    """What the scheduler passed on of one request: tokens, and the products and log-probabilities of their rows."""

    tokens: list[int] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Watch:
    """Follows every step of an engine's runner and scheduler.

    Attributes:
        delivered: by engine request.
        computed: by engine request and position, the product that was computed last.
        counts: how often what is to be provoked has happened.
        worst_activation: largest relative difference between a layer's product and silu(g) * u in float32.
    """

    def __init__(self, llm: Any) -> None:
        core = llm.llm_engine.engine_core.engine_core
        worker = core.model_executor.driver_worker.worker
        self.scheduler, self.runner = core.scheduler, worker.model_runner
        self.recorder = worker._recorder
        self.delivered: dict[str, Delivered] = {}
        self.computed: dict[str, dict[int, Tensor]] = {}
        self.counts = dict.fromkeys(
            ("steps", "overlaps", "chunks", "preemptions", "drafts", "rejected", "accepted", "thrown_away",
             "rows_compared", "rows_that_differ", "repeated_plans", "resets", "alike"), 0
        )  # fmt: skip
        self.worst_activation = 0.0
        self._steps: dict[int, Step] = {}
        self._products: dict[int, Tensor] = {}
        self._batch: Any = None
        self._last_batch: list[str] = []
        self._scheduler_output: Any = None
        self._watch_model(self.runner.model)
        self._watch_runner()
        self._watch_scheduler()

    def _watch_model(self, model: nn.Module) -> None:
        for module in model.modules():
            act_fn = getattr(module, "act_fn", None)
            if isinstance(act_fn, TappedActivation):
                act_fn.register_forward_hook(self._check_activation)
                layer = act_fn.layer
                module.down_proj.register_forward_pre_hook(
                    lambda _, inputs, layer=layer: self._products.__setitem__(layer, inputs[0].clone())
                )

    def _check_activation(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        gate, up = inputs[0].float().chunk(2, dim=-1)
        expected = nn.functional.silu(gate) * up
        relative = (output.float() - expected).abs() / (expected.abs() + 1e-3)
        self.worst_activation = max(self.worst_activation, float(relative.max()))

    def _watch_runner(self) -> None:
        runner = self.runner
        execute, prepare, sample = runner.execute_model, runner.prepare_inputs, runner.sample_tokens

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._scheduler_output, self._batch = scheduler_output, None
            self.counts["overlaps"] += bool(self._steps)
            return execute(scheduler_output, *args, **kwargs)

        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            plan, last = self.recorder._plan, self._last_batch
            self._batch = batch = prepare(*args, **kwargs)
            self.counts["repeated_plans"] += plan is not None and plan is self.recorder._plan
            self.counts["alike"] += batch.req_ids == last and batch.num_tokens > len(last)
            self._last_batch = list(batch.req_ids)
            return batch

        def sample_tokens(grammar_output: Any) -> Any:
            if self._batch is not None:
                self._take_step(runner.execute_model_state.hidden_states)
            return sample(grammar_output)

        runner.execute_model, runner.prepare_inputs, runner.sample_tokens = execute_model, prepare_inputs, sample_tokens

    @torch.inference_mode()
    def _take_step(self, hidden_states: Tensor) -> None:
        batch = self._batch
        rows = batch.logits_indices.long()
        products = torch.cat([self._products[layer] for layer in sorted(self._products)], dim=1)
        for index, name in enumerate(batch.req_ids):
            own = range(batch.query_start_loc_np[index], batch.query_start_loc_np[index + 1])
            self.computed.setdefault(name, {}).update({int(batch.positions[row]): products[row] for row in own})
        logits = self.runner.model.compute_logits(hidden_states[rows])
        self._steps[id(self._scheduler_output)] = Step(
            self._scheduler_output,
            list(batch.req_ids),
            batch.cu_num_logits_np.tolist(),
            products[rows],
            torch.log_softmax(logits.float(), dim=-1),
            self.recorder.record.data.clone(),
        )
        self.counts["steps"] += 1
        self.counts["chunks"] += int((batch.is_prefilling_np & ~self._ends_prefill(batch)).sum())

    @staticmethod
    def _ends_prefill(batch: Any) -> npt.NDArray[np.bool_]:
        ends: npt.NDArray[np.bool_] = (
            batch.num_computed_prefill_tokens_np + batch.num_scheduled_tokens >= batch.prefill_len_np
        )
        return ends

    def _watch_scheduler(self) -> None:
        update = self.scheduler.update_from_output

        def update_from_output(scheduler_output: Any, output: Any) -> Any:
            step = self._steps.pop(id(scheduler_output), None)
            self.counts["preemptions"] += len(scheduler_output.preempted_req_ids or ())
            if step is not None:
                self._count_tokens(scheduler_output, output)
                self._compare_rows(step, getattr(output, "nex_step", None))
            outputs = update(scheduler_output, output)
            for per_client in outputs.values():
                for each in per_client.outputs:
                    if each.new_token_ids and step is not None:
                        self._deliver(step, each.request_id, list(each.new_token_ids))
            return outputs

        self.scheduler.update_from_output = update_from_output

    def _count_tokens(self, scheduler_output: Any, output: Any) -> None:
        drafts = scheduler_output.scheduled_spec_decode_tokens
        for name, index in output.req_id_to_index.items():
            tokens = output.sampled_token_ids[index]
            request = self.scheduler.requests.get(name)
            self.counts["thrown_away"] += bool(tokens) and (request is None or request.is_finished())
            if drafts.get(name) and tokens:
                self.counts["drafts"] += len(drafts[name])
                self.counts["accepted"] += len(tokens) - 1
                self.counts["rejected"] += len(drafts[name]) - (len(tokens) - 1)

    def _compare_rows(self, step: Step, nex_step: Any) -> None:
        """Compare what was recorded, bit by bit, with what the down-projections read at the rows sampled from."""
        for name, (first, count) in (nex_step.spans if nex_step is not None else {}).items():
            start = step.first[step.requests.index(name)]
            expected = step.products[start : start + count]
            if name in nex_step.forced_offset:
                start = self.recorder._requests[name].options.response_start - 1 + nex_step.forced_offset[name]
                expected = torch.stack([self.computed[name][start + i] for i in range(count)])
            self.counts["rows_compared"] += count
            same = step.recorded[first : first + count] == expected
            self.counts["rows_that_differ"] += int((~same.all(dim=1)).sum())

    def _deliver(self, step: Step, name: str, tokens: list[int]) -> None:
        index = step.requests.index(name)
        start = step.first[index]
        assert len(tokens) <= step.first[index + 1] - start, "more tokens than rows"
        delivered = self.delivered.setdefault(name, Delivered())
        delivered.tokens += tokens
        delivered.products.append(step.products[start : start + len(tokens)])
        delivered.logprobs += [float(step.logprobs[start + i, token]) for i, token in enumerate(tokens)]

    def expectation(
        self, name: str, weights: Tensor, top_k: int, width: int, given: Sequence[int] | None
    ) -> dict[str, Any]:
        """Return what NEX should say of one engine request: tokens, masses, sums by key, sum of log-probabilities.

        Args:
            name: the engine's id.
            weights: float32 [neurons].
            top_k: K.
            width: neurons of a layer.
            given: the positions to look at, where the response was given; by default, those of the delivered tokens.
        """
        delivered = self.delivered[name]
        rows = delivered.products if given is None else [self.computed[name][each][None] for each in given]
        products = torch.cat(rows)
        thresholds = naive.thresholds(products, top_k)
        _, columns, values = naive.entries(products, thresholds)
        sums: dict[int, float] = {}
        for column, value in zip(columns.tolist(), values.tolist(), strict=True):
            key = column // width << 16 | column % width
            sums[key] = sums.get(key, 0.0) + value
        return {
            "tokens": delivered.tokens,
            "num_tokens": len(products),
            "masses": naive.row_sums(products, thresholds, weights).sum(dim=0).tolist(),
            "sums": sums,
            "logprob": sum(delivered.logprobs),
        }
