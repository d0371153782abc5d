"""Installed but not asked for: the engine is plain vLLM's, and so is what it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine

# Describes the process after an engine has run: every class and function that NEX would wrap, the model's modules, the
# traced graph's operators, and the answers at temperature 0.
PROGRAM = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from vllm import LLM, SamplingParams
import vllm.sampling_params
from vllm.outputs import RequestOutput
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import RequestState
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
llm = LLM(sys.argv[1], dtype="float32", max_model_len=256, max_num_seqs=8, enforce_eager=True)
core = llm.llm_engine.engine_core.engine_core
runner = core.model_executor.driver_worker.worker.model_runner
config = core.vllm_config
outputs = llm.generate(json.loads(sys.argv[2]), SamplingParams(temperature=0, max_tokens=24))
module_of = lambda function: getattr(function, "__func__", function).__code__.co_filename.split("site-packages/")[-1]
print("RESULT " + json.dumps({
    "worker": config.parallel_config.worker_cls,
    "scheduler": [f"{type(core.scheduler).__module__}.{type(core.scheduler).__name__}", config.scheduler_config.scheduler_cls],
    "activations": sorted({type(m.act_fn).__name__ for m in runner.model.modules() if hasattr(m, "act_fn")}),
    "own_attributes": "_prepare_inputs" in vars(runner),
    "functions": [module_of(f) for f in (
        RequestState.make_request_output, RequestState.from_new_request, InputProcessor.process_inputs, RequestOutput.add,
        ChatCompletionRequest.to_sampling_params, OpenAIServingChat.chat_completion_full_generator)],
    "sampling_params": SamplingParams is vllm.sampling_params.SamplingParams,
    "loaded": sorted(name for name in sys.modules if name.split(".")[0] == "nex_vllm"),
    "registered": "nex_vllm_plugin" in sys.modules,
    "answers": [list(o.outputs[0].token_ids) for o in outputs],
    "logprobs": [o.outputs[0].cumulative_logprob for o in outputs],
}))
"""


def _describe(model: Path, prompts: list[str], plugins: str | None) -> dict[str, Any]:
    environment = {**os.environ}
    environment.pop("VLLM_PLUGINS", None)
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), json.dumps(prompts)],
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def test_installed_but_not_asked_for_is_plain_vllm(shipped_model: Path, prompts: list[str]) -> None:
    plain = _describe(shipped_model, prompts[:4], plugins="")
    installed = _describe(shipped_model, prompts[:4], plugins=None)
    assert not plain.pop("registered"), "the plugin was kept out of the first process"
    assert installed.pop("registered"), "the plugin was loaded in the second"
    assert installed["loaded"] == []
    assert installed["sampling_params"]
    assert not installed["own_attributes"]
    assert all(name.startswith("vllm/") for name in installed["functions"])
    assert installed == plain
