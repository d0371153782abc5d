"""What selecting costs: tokens per second of plain vLLM and of NEX, in alternating pairs within one run.

    python benchmarks/overhead.py [--model FOLDER] [--rounds 7] [--prompts 8] [--json FILE]

Both engines are started, warmed up twice, and then asked in turn for the same number of tokens: 3 samples of each
prompt, all of fixed length. The first of a pair alternates. Reported are each side's median and the ratio
NEX / plain pair by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np
from tqdm import tqdm

from nex_vllm import SamplingParams
from nex_vllm.storage import WeightsFile, WeightsMeta, model_fingerprint, save_weights

COUNTDOWN = Path(__file__).parent.parent / "examples" / "countdown"
SAMPLES = 3
WARM_UPS = 2


def write_random_weights(model: Path, top_k: int, row_tokens: int, path: Path) -> None:
    """Write weights for every neuron of the model: what they are does not change what they cost."""
    config = json.loads((model / "config.json").read_text())
    layers, width = config["num_hidden_layers"], config["intermediate_size"]
    keys = (np.arange(layers)[:, None] << 16 | np.arange(width)).ravel().astype(np.uint32)
    values = np.random.default_rng(0).uniform(-1, 1, len(keys)).astype(np.float32)
    meta = WeightsMeta(
        str(model),
        model_fingerprint(model),
        layers,
        width,
        top_k,
        row_tokens,
        0.95,
        2,
        "introduced",
        1,
        1,
        "overhead.py",
    )
    save_weights(path, WeightsFile(keys, values, meta))


def start_engine(model: Path, max_num_seqs: int, nex: dict[str, Any] | None, eager: bool) -> Any:
    """Start an engine; plain vLLM where ``nex`` is None."""
    from vllm import LLM

    extra = {} if nex is None else {"additional_config": {"nex": nex}}
    return LLM(
        str(model),
        max_model_len=512,
        max_num_seqs=max_num_seqs,
        enforce_eager=eager,
        gpu_memory_utilization=0.3,
        **extra,
    )


def tokens_per_second(llm: Any, prompts: list[str], params: Any, num_tokens: int) -> float:
    """Run one round."""
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return num_tokens / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=COUNTDOWN / "model", help="model folder (the shipped one)")
    parser.add_argument("--rounds", type=int, default=7, help="counted pairs (7)")
    parser.add_argument("--prompts", type=int, default=8, help="prompts at once, 3 samples of each (8)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of every sample (256)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()

    settings = json.loads((COUNTDOWN / "settings.json").read_text())
    lines = (COUNTDOWN / "test.jsonl").read_text().splitlines()
    prompts = [json.loads(lines[i % len(lines)])["prompt"] for i in range(options.prompts)]
    num_tokens = options.prompts * SAMPLES * options.tokens
    common: dict[str, Any] = {"n": SAMPLES, "max_tokens": options.tokens, "ignore_eos": True, "temperature": 0.7}
    plain_params, nex_params = SamplingParams(**common), SamplingParams(nex_select=True, **common)

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_random_weights(options.model, settings["top_k"], settings["row_tokens"], weights)
        plain = start_engine(options.model, options.prompts * SAMPLES, None, options.eager)
        nex = start_engine(options.model, options.prompts * SAMPLES, {"weights": str(weights)}, options.eager)
        sides = {"plain": (plain, plain_params), "nex": (nex, nex_params)}
        rates: dict[str, list[float]] = {"plain": [], "nex": []}
        for number in tqdm(range(WARM_UPS + options.rounds), desc="pairs", file=sys.stderr):
            order = ("plain", "nex") if number % 2 == 0 else ("nex", "plain")
            for side in order:
                rate = tokens_per_second(*sides[side][:1], prompts, sides[side][1], num_tokens)
                if number >= WARM_UPS:
                    rates[side].append(rate)

    ratios = [nex / plain for nex, plain in zip(rates["nex"], rates["plain"], strict=True)]
    import torch
    import vllm

    result = {
        "benchmark": "overhead",
        "command": " ".join(["python", "benchmarks/overhead.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": next(
                (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x),
                platform.processor(),
            ),
            "cores": len(os.sched_getaffinity(0)),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "model": options.model.name if options.model != COUNTDOWN / "model" else "examples/countdown/model",
        "sequences": options.prompts * SAMPLES,
        "compiled": not options.eager,
        "tokens_per_second": rates,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "pairs": ratios},
    }
    for side, values in rates.items():
        print(f"{side:>6}: {statistics.median(values):8.0f} tokens/s  (min {min(values):.0f}, max {max(values):.0f})")
    spread = f"min {min(ratios):.3f}, max {max(ratios):.3f}, {len(ratios)} pairs"
    print(f" ratio: {statistics.median(ratios):8.3f} nex / plain  ({spread})")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
