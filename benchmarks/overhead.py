"""What NEX costs: tokens per second of plain vLLM and of vLLM with NEX, in alternating rounds within one run.

    python benchmarks/overhead.py [--workload decode|prefill] [--sides plain,installed,idle,selecting]
                                  [--model FOLDER | --shape qwen3-0.6b|qwen3-4b] [--prompts 8 ...] [--json FILE]

The sides: ``plain`` vLLM with the plugin not loaded; ``installed``, loaded and not asked for; ``idle``, an engine with
NEX on and requests that do not ask; ``selecting``, the same engine and requests that do. Every engine has processes
of its own. All are warmed up twice and then take turns, in an order that rotates, for the same number of tokens:
3 samples of each prompt, all of fixed length, without prefix cache, so that every round computes the same. Reported
is each side's ratio to plain, round by round: median, extremes, quartiles.

decode: short prompts, 256 tokens out. prefill: prompts of 400 random tokens, 16 tokens out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import numpy as np
from common import COUNTDOWN, check_result_path, described, device_kind, rotated, spread, write_result
from engines import Engine, Prompts
from shapes import (
    SHAPES,
    SHIPPED,
    build_shape,
    engine_options,
    recording_settings,
    vocabulary_size,
    write_random_weights,
)
from tqdm import tqdm

SAMPLES = 3
WARM_UPS = 2
ENGINE_OF = {"plain": "plain", "installed": "installed", "idle": "nex", "selecting": "nex"}
TOKENS = {"decode": 256, "prefill": 16}
PROMPT_TOKENS = {"decode": 16, "prefill": 400}
# Between rounds of different engines: the threads of the one before stop spinning.
PAUSE_SECONDS = 0.2


def make_prompts(count: int, workload: str, model: Path) -> Prompts:
    """Return the shipped model's own problems to decode from, and random tokens for everything else."""
    if workload == "decode" and model.resolve() == SHIPPED.resolve():
        lines = (COUNTDOWN / "development.jsonl").read_text().splitlines()
        return [json.loads(lines[i % len(lines)])["prompt"] for i in range(count)]
    rng = np.random.default_rng(count)
    size = (count, PROMPT_TOKENS[workload])
    return [{"prompt_token_ids": row} for row in rng.integers(2, vocabulary_size(model), size).tolist()]


def start_engines(kinds: Sequence[str], model: Path, weights: Path, options: dict[str, Any]) -> dict[str, Engine]:
    """Start engines: one after the other on the CPU; on a GPU side by side, each with a fixed share of its memory."""
    engines: dict[str, Engine] = {}
    try:
        for kind in kinds:
            engines[kind] = Engine(kind, model, options, weights)
            if device_kind() == "cpu":
                engines[kind].wait()
        if device_kind() == "gpu":
            for engine in engines.values():
                engine.wait()
    except BaseException:
        stop_engines(engines)
        raise
    return engines


def stop_engines(engines: dict[str, Engine]) -> None:
    """End all of them."""
    for engine in engines.values():
        engine.stop()


def measure(
    engines: dict[str, Engine], sides: Sequence[str], prompts: Prompts, params: dict[str, Any], rounds: int
) -> dict[str, Any]:
    """Measure all sides with the same prompts."""
    num_tokens = len(prompts) * SAMPLES * params["max_tokens"]
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for round_index in tqdm(range(WARM_UPS + rounds), desc=f"{len(prompts) * SAMPLES} sequences", file=sys.stderr):
        for side in rotated(sides, round_index):
            asked = {**params, "extra_args": {"nex_select": True}} if side == "selecting" else params
            time.sleep(PAUSE_SECONDS)
            done = engines[ENGINE_OF[side]].run(prompts, asked)
            if done.num_tokens != num_tokens:
                raise RuntimeError(f"The side {side!r} made {done.num_tokens} tokens, expected {num_tokens}.")
            if round_index >= WARM_UPS:
                rates[side].append(num_tokens / done.seconds)
    ratios = {
        side: [rate / plain for rate, plain in zip(rates[side], rates["plain"], strict=True)]
        for side in sides
        if side != "plain"
    }
    return {
        "prompts": len(prompts),
        "sequences": len(prompts) * SAMPLES,
        "tokens_per_second": rates,
        "ratio": {side: {**spread(values), "rounds": values} for side, values in ratios.items()},
    }


def show(level: dict[str, Any]) -> None:
    """Print one number of sequences: medians and ratios."""
    print(f"{level['sequences']} sequences")
    for side, values in level["tokens_per_second"].items():
        ratio = level["ratio"].get(side)
        print(f"{side:>11}: {statistics.median(values):9.0f} tokens/s" + (f"  {described(ratio)}" if ratio else ""))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, default=SHIPPED, help="model folder (the shipped one)")
    source.add_argument("--shape", choices=sorted(SHAPES), help="a model of this shape with random weights")
    parser.add_argument("--workload", choices=sorted(TOKENS), default="decode", help="what is mostly computed (decode)")
    parser.add_argument("--sides", default="plain,idle,selecting", help="sides, with commas (plain,idle,selecting)")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (7)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[8], help="prompts at once, 3 samples of each (8)")
    parser.add_argument("--tokens", type=int, help="tokens of every sample (256; with --workload prefill 16)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for shape and weights (a temporary one); compiled graphs are found again only for the same folder",
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    check_result_path(parser, options.json)
    options.sides = options.sides.split(",")
    unknown = [side for side in options.sides if side not in ENGINE_OF]
    if unknown or "plain" not in options.sides or len(set(options.sides)) != len(options.sides):
        parser.error(f"--sides takes plain and some of {', '.join(ENGINE_OF)}, each once")
    options.tokens = options.tokens or TOKENS[options.workload]
    return options


def run(options: argparse.Namespace, folder: Path) -> None:
    """Start the engines, measure every number of prompts, and write the result after each."""
    model = options.model if options.shape is None else build_shape(options.shape, folder / options.shape)
    top_k, row_tokens = recording_settings(model)
    weights = write_random_weights(model, folder / "weights.safetensors", top_k, row_tokens)
    on_gpu = device_kind() == "gpu"
    # A fixed size, because vLLM would measure free memory, and engines that start together disturb that.
    memory = {"gpu_memory_utilization": 0.2, "kv_cache_memory_bytes": 8 << 30} if on_gpu else {}
    params = {"n": SAMPLES, "max_tokens": options.tokens, "ignore_eos": True, "temperature": 0.7}
    if options.shape is not None:
        params["detokenize"] = False
    every_prompts = [make_prompts(count, options.workload, model) for count in options.prompts]
    content: dict[str, Any] = {
        "model": options.shape or ("countdown" if model.resolve() == SHIPPED.resolve() else model.name),
        "weights": "dummy" if options.shape else "as given",
        "workload": options.workload,
        "prompt_tokens": "shipped problems"
        if isinstance(every_prompts[0][0], str)
        else PROMPT_TOKENS[options.workload],
        "tokens": options.tokens,
        "top_k": top_k,
        "compiled": not options.eager,
        "warm_ups": WARM_UPS,
        "levels": [],
    }
    engines = start_engines(
        sorted({ENGINE_OF[side] for side in options.sides}, key=list(ENGINE_OF.values()).index),
        model,
        weights,
        {
            "max_model_len": 512,
            "max_num_seqs": max(options.prompts) * SAMPLES,
            "enforce_eager": options.eager,
            "enable_prefix_caching": False,
            **memory,
            **engine_options(options.shape),
        },
    )
    try:
        content["engines"] = {kind: engine.facts for kind, engine in engines.items()}
        for prompts in every_prompts:
            level = measure(engines, options.sides, prompts, params, options.rounds)
            show(level)
            content["levels"].append(level)
            if options.json:
                write_result(options.json, "overhead", content)
    finally:
        stop_engines(engines)


def main() -> None:
    """Measure and print."""
    options = parse()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        run(options, options.work.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


if __name__ == "__main__":
    main()
