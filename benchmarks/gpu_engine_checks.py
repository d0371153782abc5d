"""Engine checks that :mod:`gpu_suite` runs in processes of their own; each writes what it found as JSON.

python benchmarks/gpu_engine_checks.py imports|sums|trace FILE [options]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, device_kind
from engines import without_plugin
from shapes import SHIPPED, build_shape, engine_options, recording_settings, write_random_weights

ENTRY_POINT = "nex_vllm_plugin:register"
TOP_K = 24
# Allowed error of a candidate's sums, as a share of its mass. On this model transformers in bfloat16 differs from
# float32 by up to 0.037. Records of the token before or after differ by at least 0.052, of another candidate by more
# than 1.
MOST_ERROR = {"float32": 0.01, "bfloat16": 0.06}
TRACE_SEQUENCES, TRACE_STEPS = 96, 8

# What the engine's path imports, and what only learning weights does.
_NEEDED = ("torch", "triton", "numpy", "safetensors", "vllm", "transformers", "tqdm")
_LEARNING = ("hmmlearn", "sklearn", "pyarrow", "typer")
_EXTRA = ("numba", "pytest", "xdist", "pytest_timeout", "matplotlib", "flashinfer")


def imports() -> dict[str, Any]:
    """Return whether what an engine needs can be imported, and what else is installed."""
    failed = None
    try:
        for name in ("plugin.worker", "plugin.scheduler", "plugin.frontend", "storage.weights", "kernels.gpu"):
            importlib.import_module(f"nex_vllm.{name}")
    except Exception as error:  # an import can fail in any way
        failed = f"{type(error).__name__}: {error}"
    found: dict[str, str | None] = {}
    for name in (*_NEEDED, *_LEARNING, *_EXTRA):
        try:
            found[name] = str(getattr(importlib.import_module(name), "__version__", "there"))
        except Exception as error:
            found[name] = None
            print(f"{name} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr)
    points = [each.value for each in importlib.metadata.entry_points(group="vllm.general_plugins")]
    return {
        "passed": failed is None and all(found[name] for name in _NEEDED) and ENTRY_POINT in points,
        "engine_path_failed": failed,
        "entry_point_known": ENTRY_POINT in points,
        "missing_for_the_engine": [name for name in _NEEDED if found[name] is None],
        "missing_for_calibration_only": [name for name in _LEARNING if found[name] is None],
        "found": found,
    }


def sums(dtype: str) -> dict[str, Any]:
    """Compare the engine's sums, with compiled and captured graphs, with a transformers forward with hooks."""
    import numpy as np
    import vllm

    from nex_vllm.storage import load_weights
    from tests.plugin.models import SHAPE, save_random_model
    from tests.plugin.reference import HookedModel

    width, layers = SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]

    def dense(keys: Any, values: Any) -> Any:
        keys, found = np.asarray(keys, dtype=np.int64), np.zeros(layers * width)
        found[(keys >> 16) * width + (keys & 0xFFFF)] = values
        return found

    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model("qwen3", Path(folder) / "qwen3", SHIPPED)
        weights = write_random_weights(model, Path(folder) / "weights.safetensors", TOP_K, 8)
        file = load_weights(weights)
        neuron_weights = dense(file.keys, file.weights)
        llm = vllm.LLM(
            str(model),
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=256,
            max_num_seqs=32,
            gpu_memory_utilization=0.2,
            kv_cache_memory_bytes=1 << 30,
            additional_config={"nex": {"weights": str(weights)}},
        )
        config = llm.llm_engine.vllm_config
        outputs = llm.generate(*_requests(), use_tqdm=False)
        asked = [output for output in outputs if hasattr(output, "nex")]
        reference = HookedModel(model)
        errors, shifted, scores = [], [], []
        for output in asked:
            for each in output.nex.candidates:
                prompt, response = list(output.prompt_token_ids), each.token_ids
                kept = reference.sums(prompt, response, TOP_K).sums
                expected, seen = dense(list(kept), list(kept.values())), dense(each.sums.keys, each.sums.masses)
                errors.append(float(np.abs(seen - expected).sum() / expected.sum()))
                later = reference.sums([*prompt, response[0]], [*response[1:], response[0]], TOP_K).sums
                off = dense(list(later), list(later.values()))
                shifted.append(float(np.abs(off - expected).sum() / expected.sum()))
                weighted = seen * neuron_weights
                scores.append(abs(each.score - float(np.maximum(weighted, 0).sum() / np.abs(weighted).sum())))
        llm.llm_engine.engine_core.shutdown()
    largest, median = max(errors), float(np.median(errors))
    as_asked = [i for i, output in enumerate(outputs) if hasattr(output, "nex")] == [i for i in range(30) if i % 4 != 3]
    return {
        "passed": as_asked
        and config.use_v2_model_runner
        and "FULL" in config.compilation_config.cudagraph_mode.name
        and largest <= MOST_ERROR[dtype]
        and 2 * median <= float(np.median(shifted))
        and max(scores) < 1e-4,
        "dtype": dtype,
        "model_runner": "V2" if config.use_v2_model_runner else "V1",
        "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
        "compilation_mode": str(config.compilation_config.mode),
        "candidates": len(errors),
        "largest_error": largest,
        "allowed_error": MOST_ERROR[dtype],
        "median_error": median,
        "median_error_of_the_next_token": float(np.median(shifted)),
        "largest_score_error": max(scores),
        "selections_for_those_who_asked_alone": as_asked,
    }


def _requests() -> tuple[list[Any], list[Any]]:
    """Return 30 prompts of different length with 1 to 3 samples; every fourth does not ask for NEX."""
    import numpy as np
    import vllm

    rng = np.random.default_rng(7)
    prompts = [{"prompt_token_ids": rng.integers(2, 250, 3 + 5 * (i % 12)).tolist()} for i in range(30)]
    params = []
    for i in range(30):
        asked = {} if i % 4 == 3 else {"extra_args": {"nex_select": "all", "nex_return_sums": True}}
        params.append(
            vllm.SamplingParams(
                n=1 + i % 3,
                max_tokens=6 + 5 * (i % 7),
                temperature=0.9,
                seed=i,
                ignore_eos=True,
                detokenize=False,
                **asked,
            )
        )
    return prompts, params


def trace(side: str, work: Path, shape: str, max_num_seqs: int) -> dict[str, Any]:
    """Return the GPU's kernels of one decode step, by name: launches and microseconds, means over some steps.

    The engine runs in this process, so that the profiler sees it; ``VLLM_ENABLE_V1_MULTIPROCESSING=0`` is set by the
    caller. Model, weights and options are those of the overhead's engines, whose compiled graphs are found again.
    """
    if side == "plain":
        # As the overhead's plain engine: what is loaded is part of a compiled graph's name.
        os.environ.update(without_plugin())
    import torch
    import vllm

    model = build_shape(shape, work / shape)
    weights = work / "weights.safetensors"
    if not weights.exists():
        write_random_weights(model, weights, *recording_settings(model))
    extra = {"additional_config": {"nex": {"weights": str(weights)}}} if side == "selecting" else {}
    llm = vllm.LLM(
        str(model),
        max_model_len=512,
        max_num_seqs=max_num_seqs,
        enforce_eager=False,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.2,
        kv_cache_memory_bytes=8 << 30,
        **engine_options(shape),
        **extra,
    )
    asked = {"extra_args": {"nex_select": True}} if side == "selecting" else {}
    params = vllm.SamplingParams(n=3, max_tokens=64, temperature=0.7, ignore_eos=True, detokenize=False, **asked)
    prompts = [
        {"prompt_token_ids": [5 + (7 * i + position) % 1000 for position in range(16)]}
        for i in range(TRACE_SEQUENCES // 3)
    ]
    llm.enqueue(prompts, params, use_tqdm=False)
    for _ in range(16):
        llm.llm_engine.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(TRACE_STEPS):
            llm.llm_engine.step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        kernels = kernels_of(json.loads(path.read_text()), TRACE_STEPS)
    return {
        "passed": bool(kernels),
        "side": side,
        "sequences": TRACE_SEQUENCES,
        "steps": TRACE_STEPS,
        "microseconds_per_step": sum(each["microseconds"] for each in kernels.values()),
        "kernels": kernels,
    }


def kernels_of(recorded: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Add up what ran on the GPU, by name, per step, the longest first."""
    added: dict[str, dict[str, float]] = {}
    for event in recorded["traceEvents"]:
        if event.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}:
            entry = added.setdefault(event["name"], {"launches": 0.0, "microseconds": 0.0})
            entry["launches"] += 1 / steps
            entry["microseconds"] += event["dur"] / steps
    return dict(sorted(added.items(), key=lambda each: -each[1]["microseconds"]))


def main() -> None:
    """Run one check and write what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=["imports", "sums", "trace"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=sorted(MOST_ERROR), default="float32", help="of sums")
    parser.add_argument("--side", choices=["plain", "selecting"], default="plain", help="of trace")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nex-trace", help="of trace")
    parser.add_argument("--shape", default="qwen3-4b", help="of trace")
    parser.add_argument("--max-num-seqs", type=int, default=TRACE_SEQUENCES, help="of trace")
    options = parser.parse_args()
    if options.check == "trace" and device_kind() == "cpu":
        parser.error("there is no GPU here that torch can use, and trace needs one")
    # The tests' own reference and models, and the package, wherever this is started from.
    sys.path.insert(0, str(ROOT))
    if options.check == "imports":
        result = imports()
    elif options.check == "sums":
        result = sums(options.dtype)
    else:
        result = trace(options.side, options.work, options.shape, options.max_num_seqs)
    options.file.write_text(json.dumps(result, indent=2) + "\n")
    raise SystemExit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
