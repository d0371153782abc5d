"""An asynchronous engine on the CPU, run as a program of its own: `python async_engine.py MODEL WEIGHTS`.

vLLM's CPU platform switches asynchronous scheduling off, because the V1 runner's asynchronous output copies on a CUDA
stream. Streams and events are replaced by ones that do nothing (a CPU copy is over when it returns); scheduler, runner,
placeholders and discarded tokens are vLLM's own. Prints what the test compares, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from vllm.platforms.cpu import CpuPlatform


class _NoEvent:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def record(self, *args: object) -> None: ...
    def synchronize(self) -> None: ...
    def wait(self, *args: object) -> None: ...


class _NoStream:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def wait_stream(self, other: object) -> None: ...
    def synchronize(self) -> None: ...


torch.cuda.Event = _NoEvent  # type: ignore[assignment, misc]
torch.cuda.Stream = _NoStream  # type: ignore[assignment, misc]
torch.cuda.current_stream = lambda *args: _NoStream()  # type: ignore[assignment]
torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore[assignment]

_plain = CpuPlatform.check_and_update_config.__func__


def _asynchronous(cls: type, config: object) -> None:
    _plain(cls, config)
    config.scheduler_config.async_scheduling = True  # type: ignore[attr-defined]
    config.parallel_config.distributed_executor_backend = "uni"  # type: ignore[attr-defined]


CpuPlatform.check_and_update_config = classmethod(_asynchronous)  # type: ignore[assignment]


def main() -> None:
    from vllm import LLM

    from nex_vllm import SamplingParams

    model, weights, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    llm = LLM(
        model, dtype="float32", max_model_len=256, max_num_seqs=16, enforce_eager=True, num_gpu_blocks_override=10,
        block_size=32, enable_prefix_caching=False, disable_log_stats=False, additional_config={"nex": {"weights": weights}},
    )  # fmt: skip
    core = llm.llm_engine.engine_core.engine_core
    scheduler = core.scheduler
    thrown_away = 0
    plain_update = scheduler.update_from_output

    def counting_update(scheduler_output: object, output: object) -> object:
        nonlocal thrown_away
        for name, index in output.req_id_to_index.items():  # type: ignore[attr-defined]
            request = scheduler.requests.get(name)
            if (request is None or request.is_finished()) and output.sampled_token_ids[index]:  # type: ignore[attr-defined]
                thrown_away += 1
        return plain_update(scheduler_output, output)

    scheduler.update_from_output = counting_update
    # An end that the scheduler cannot foresee: a step of this request is under way when its stop token is seen.
    common = {"n": 3, "max_tokens": 40, "temperature": 0.9, "stop_token_ids": llm.get_tokenizer().encode("then")}
    outputs = llm.generate(
        prompts, SamplingParams(nex_select="all", nex_return_sums=True, nex_return_rows=True, **common)
    )
    thrown_away_with_entries, thrown_away = thrown_away, 0
    # What nearly everybody asks for: masses travel with a response's last token.
    outputs += llm.generate(prompts, SamplingParams(nex_select="all", **common))
    preemptions = sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    runner = type(core.model_executor.driver_worker.worker.model_runner)
    result = {
        "runner": f"{runner.__module__}.{runner.__qualname__}",
        "scheduler": type(scheduler).__mro__[2].__name__,
        "asynchronous": core.vllm_config.scheduler_config.async_scheduling,
        "thrown_away": [thrown_away_with_entries, thrown_away],
        "preemptions": preemptions,
        "outputs": [
            {
                "prompt": list(output.prompt_token_ids),
                "candidates": [
                    {
                        "tokens": c.token_ids,
                        "finish_reason": c.finish_reason,
                        "score": c.score,
                        "keys": c.sums.keys.tolist() if c.sums else None,
                        "masses": c.sums.masses.tolist() if c.sums else None,
                        "num_scored": c.num_scored_tokens,
                        "logprobs": c.rows.logprob.tolist() if c.rows else [],
                    }
                    for c in output.nex.candidates
                ],
            }
            for output in outputs
        ],
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
