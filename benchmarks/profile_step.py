"""What NEX adds to one decode step, part by part, on the CPU.

    python benchmarks/profile_step.py [--sequences 96] [--tokens 200] [--eager] [--json FILE]

The engine runs in this process, so that its parts can be timed where they are called: medians over the decode steps of
one round of requests. Taps are called from compiled code and are timed inside the op. On a GPU run `gpu_suite.py`,
which lists kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# In this process, before vLLM is imported.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from common import COUNTDOWN, check_result_path, device_kind, write_result
from shapes import SHIPPED, recording_settings, write_random_weights

SAMPLES = 3


class Timer:
    """Measures how long calls of functions take.

    Attributes:
        seconds: by label, of every call.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def around(self, owner: Any, name: str, label: str) -> None:
        """Measure every call of ``owner.name`` from now on."""
        plain: Callable[..., Any] = getattr(owner, name)
        seconds = self.seconds[label]

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = plain(*args, **kwargs)
            seconds.append(time.perf_counter() - start)
            return result

        setattr(owner, name, timed)


def time_taps(timer: Timer) -> None:
    """Measure the tap inside the op, in place of the kernel that the CPU runs."""
    import torch

    from nex_vllm.kernels import cpu

    seconds = timer.seconds["tap, one layer"]

    def timed(*args: Any) -> None:
        start = time.perf_counter()
        cpu.tap_cpu(*args)
        seconds.append(time.perf_counter() - start)

    # Kept alive by the library object, which undoes the registration when it is collected.
    library = torch.library.Library("nex", "IMPL")
    library.impl("tap", timed, "CPU", allow_override=True)
    time_taps.library = library  # type: ignore[attr-defined]


def time_parts(timer: Timer, llm: Any) -> None:
    """Measure what a step calls, in the order of a step."""
    from nex_vllm.plugin import runners

    core = llm.llm_engine.engine_core.engine_core
    recorder = core.model_executor.driver_worker.worker.model_runner.nex_recorder
    timer.around(recorder, "repeat", "same batch again?")
    timer.around(recorder, "begin", "new batch: plan and slots")
    timer.around(recorder.record._reduction, "row_sums", "select-reduce")
    timer.around(recorder, "finish", "finish (with select-reduce)")
    timer.around(runners, "with_record", "attach to the step's output")
    timer.around(core.scheduler, "_deliver", "scheduler, one candidate")
    timer.around(core, "step_fn", "whole step")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=96, help="sequences at once, a multiple of 3 (96)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each (200)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    check_result_path(parser, options.json)
    if device_kind() != "cpu":
        parser.error("this profile is of the CPU path; on a GPU run benchmarks/gpu_suite.py")

    from vllm import LLM

    from nex_vllm import SamplingParams

    lines = (COUNTDOWN / "development.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines[: options.sequences // SAMPLES]]
    params = SamplingParams(n=SAMPLES, nex_select=True, max_tokens=options.tokens, ignore_eos=True, temperature=0.7)
    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_random_weights(SHIPPED, weights, *recording_settings(SHIPPED))
        llm = LLM(
            str(SHIPPED),
            max_model_len=512,
            max_num_seqs=options.sequences,
            enforce_eager=options.eager,
            additional_config={"nex": {"weights": str(weights)}},
        )
        llm.generate(prompts, params, use_tqdm=False)
        time_taps(timer)
        time_parts(timer, llm)
        llm.generate(prompts, params, use_tqdm=False)

    medians = {label: statistics.median(seconds) * 1e6 for label, seconds in timer.seconds.items() if seconds}
    steps = len(timer.seconds["whole step"])
    for label, seconds in timer.seconds.items():
        if seconds:
            print(f"{label:32} {medians[label]:9.1f} us   {len(seconds) / steps:6.2f} a step")
    if options.json:
        calls = {label: len(seconds) / steps for label, seconds in timer.seconds.items()}
        content = {"sequences": options.sequences, "median_microseconds": medians, "calls_per_step": calls}
        write_result(options.json, "profile_step", content)


if __name__ == "__main__":
    main()
