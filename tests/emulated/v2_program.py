"""NEX on Model Runner V2, run by `run.sh` of the emulation; NEX_EMULATE_SCENARIO names one of SCENARIOS.

Real are the runner, the scheduler, the (interpreted) Triton kernels and all of NEX. Prints what the test asserts on.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.emulated import emulation  # noqa: F401  (before vLLM)

# isort: split
import numpy as np
import torch

import nex_vllm_plugin
from nex_vllm.plugin.params import SamplingParams
from nex_vllm.storage import WeightsFile, WeightsMeta, load_weights, model_fingerprint, save_weights
from tests.emulated.watch import Watch

LAYERS, WIDTH, VOCABULARY = 2, 360, 512
TOP_K, ROW_TOKENS = 40, 8
START = 20
STOPS = list(range(VOCABULARY // 16))

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": 128,
    "intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 256,
    "tie_word_embeddings": True, "attention_bias": False, "torch_dtype": "bfloat16", "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip

# A prompt of 70 tokens takes three steps of 32; the cache has no room for all candidates.
PRESSURE: dict[str, Any] = {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 12}
SCENARIOS: dict[str, dict[str, Any]] = {
    "pressure": PRESSURE,
    "kernels": PRESSURE,
    "reset": {"max_num_batched_tokens": 512, "num_gpu_blocks_override": 64},
    # Several prefills advance side by side, so that they need more room together than there is.
    "given": {**PRESSURE, "long_prefill_token_threshold": 12},
    "drafts": {
        "max_num_batched_tokens": 128,
        "num_gpu_blocks_override": 64,
        "speculative_config": {
            "method": "ngram_gpu", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1,
        },
    },
}  # fmt: skip


TAPS = {"tap": 0, "silu_mul_tap": 0}
"""How often the Triton taps ran."""


def counted(name: str, tap: Any) -> Any:
    """Return this tap, counting."""

    def counting(*args: Any) -> Any:
        TAPS[name] += 1
        return tap(*args)

    return counting


def use_kernels(name: str) -> None:
    """Tap, select and reduce on these CPU tensors with the operations of this name, ``cpu`` or ``gpu``.

    The worker's device calls itself CUDA while its tensors are on the CPU, so half of NEX's own choice would be either.
    """
    from nex_vllm.kernels.gpu_tap import silu_mul_tap_gpu, tap_gpu
    from nex_vllm.plugin import mlps
    from nex_vllm.recording import record

    record.choose = lambda device_type, dtype: name
    if name == "cpu":
        return
    plain = mlps.TappedActivation.__init__

    def half_of_them_fused(self: Any, activation: Any, of: Any, layer: int) -> None:
        plain(self, activation, of, layer)
        self.fused = layer % 2 == 0

    mlps.TappedActivation.__init__ = half_of_them_fused
    mlps.tap, mlps.silu_mul_tap = counted("tap", tap_gpu), counted("silu_mul_tap", silu_mul_tap_gpu)


def make_model(folder: Path) -> Path:
    """Write a model without weights, and neuron weights for it; return the latter's path."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    keys = (np.arange(LAYERS)[:, None] << 16 | np.arange(WIDTH)).ravel().astype(np.uint32)
    values = np.random.default_rng(0).uniform(-1, 1, len(keys)).astype(np.float32)
    meta = WeightsMeta(
        str(folder), model_fingerprint(folder), LAYERS, WIDTH, TOP_K, ROW_TOKENS, 0.95, 2, "introduced", 1, 1, "tests"
    )
    # Not beside the configuration, where it would count as the model's own weights.
    path = folder / "nex" / "weights.safetensors"
    path.parent.mkdir()
    save_weights(path, WeightsFile(keys, values, meta))
    return path


def start_engine(folder: Path, nex: dict[str, Any], options: dict[str, Any]) -> Any:
    """Start an engine on a random model whose activations differ from token to token."""
    from vllm import LLM

    nex_vllm_plugin.register()
    llm = LLM(
        str(folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=128, max_num_seqs=6, block_size=16,
        enforce_eager=True, attention_backend="TRITON_ATTN", compilation_config={"custom_ops": ["none"]},
        gpu_memory_utilization=0.1, kv_cache_memory_bytes=1 << 26, additional_config={"nex": nex}, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    with torch.no_grad():
        for name, parameter in runner.model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.2 if "embed" in name else 2 * parameter.shape[1] ** -0.5)
    return llm


def requests_of(scenario: str) -> dict[str, tuple[list[int], SamplingParams | None]]:
    """Return prompts and parameters by name; no parameters for a request that does not ask for NEX."""
    rng = np.random.default_rng(1)
    long, short = rng.integers(50, VOCABULARY, 70).tolist(), rng.integers(50, VOCABULARY, 20).tolist()
    common: dict[str, Any] = {
        "n": 3, "temperature": 1.0, "max_tokens": 14, "nex_select": "all", "nex_return_sums": True,
        "nex_return_rows": True, "seed": 5,
    }  # fmt: skip
    if scenario == "given":
        given = SamplingParams(max_tokens=1, nex_response_start=START, nex_select="all", nex_return_sums=True)
        return {name: (rng.integers(50, VOCABULARY, 70).tolist(), given) for name in ("a", "b", "c", "d")}
    if scenario == "drafts":
        greedy = {**common, "n": 1, "temperature": 0.0, "max_tokens": 30}
        periodic = [100, 101, 102, 103] * 5
        return {"greedy": (periodic, SamplingParams(**greedy)), "sampled": (periodic, SamplingParams(**common))}
    requests = {
        "long": (long, SamplingParams(**common)),
        "plain": (short, None),
        "stopping": (short, SamplingParams(**{**common, "max_tokens": 30}, stop_token_ids=STOPS)),
    }
    # Everything that was preempted comes back in one step, as the same batch in the same order.
    return {name: requests[name] for name in ("stopping", "long")} if scenario == "reset" else requests


def generate(llm: Any, watch: Watch, scenario: str) -> dict[str, Any]:
    """Run the scenario's requests to their ends; return the finished outputs by name."""
    from vllm import SamplingParams as PlainParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    for name, (prompt, asked) in requests_of(scenario).items():
        params: Any = PlainParams(max_tokens=40, ignore_eos=True) if asked is None else asked
        params.output_kind, params.detokenize = RequestOutputKind.FINAL_ONLY, False
        engine.add_request(name, {"prompt_token_ids": prompt}, params)
    finished: dict[str, Any] = {}
    resets = [8, 18] if scenario == "reset" else []
    while engine.has_unfinished_requests():
        if resets and watch.counts["steps"] >= resets[0]:
            # Everything that runs starts over, and comes back as the same batch with other numbers of tokens.
            assert engine.reset_prefix_cache(reset_running_requests=True)
            watch.counts["resets"] += 1
            resets.pop(0)
        finished.update({output.request_id: output for output in engine.step() if output.finished})
    return finished


def describe(output: Any, watch: Watch, weights: torch.Tensor) -> list[dict[str, Any]]:
    """Return, for each candidate of an output, what NEX says and what it should say."""
    described = []
    for candidate in output.nex.candidates:
        (name,) = [
            each for each in watch.delivered
            if each.startswith((f"{candidate.index}_{output.request_id}-", f"{output.request_id}-"))
        ]  # fmt: skip
        rows = candidate.rows
        given = range(START - 1, len(output.prompt_token_ids) - 1) if rows is None else None
        expected = watch.expectation(name, weights, TOP_K, WIDTH, given)
        sums = expected.pop("sums")
        found = dict(zip(candidate.sums.keys.tolist(), candidate.sums.masses.tolist(), strict=True))
        described.append(
            {
                "score": candidate.score,
                "num_tokens": candidate.num_tokens,
                "tokens": candidate.token_ids,
                "finish_reason": candidate.finish_reason,
                "masses": [candidate.pos_mass, candidate.abs_mass, candidate.tot_mass],
                "logprob": float(rows.logprob.astype(float) @ rows.tokens) if rows is not None else None,
                "same_keys": found.keys() == sums.keys(),
                "sums_error": max(abs(found.get(key, 0.0) / value - 1) for key, value in sums.items()),
                "expected": expected,
            }
        )
    return described


def main() -> None:
    """Run one scenario and print the result."""
    scenario = os.environ["NEX_EMULATE_SCENARIO"]
    use_kernels("gpu" if scenario == "kernels" else "cpu")
    with tempfile.TemporaryDirectory() as name:
        path = make_model(Path(name))
        nex = {"weights": str(path), "teacher_forced": scenario == "given"}
        llm = start_engine(Path(name), nex, SCENARIOS[scenario])
        weights = torch.from_numpy(load_weights(path).weights)
    watch = Watch(llm)
    finished = generate(llm, watch, scenario)
    runner = type(watch.runner)
    result = {
        "runner": f"{runner.__module__}.{runner.__name__}",
        "scheduler": [f"{cls.__module__}.{cls.__name__}" for cls in type(watch.scheduler).__mro__],
        "reduction": watch.recorder.record._reduction.name,
        "counts": watch.counts,
        "taps": TAPS,
        "worst_activation": watch.worst_activation,
        "outputs": {name: describe(each, watch, weights) for name, each in finished.items() if hasattr(each, "nex")},
        "finished": sorted(finished),
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
