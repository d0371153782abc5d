"""An engine whose inside can be looked at, run as a program of its own: `python own_process_program.py MODEL WEIGHTS`.

A small batch, so that a prefill takes several steps, and somebody else's worker class. Prints what the test compares.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main() -> None:
    from vllm import LLM

    from nex_vllm import SamplingParams

    model, weights = sys.argv[1:]
    llm = LLM(
        model,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=8,
        enable_chunked_prefill=True,
        enforce_eager=True,
        disable_log_stats=True,
        worker_cls="tests.plugin.ray_like_worker.RayLikeWorker",
        additional_config={"nex": {"weights": weights, "teacher_forced": True}},
    )
    engine = llm.llm_engine
    core = engine.engine_core.engine_core
    scheduler, worker = core.scheduler, core.model_executor.driver_worker.worker
    choosing = SamplingParams(n=2, nex_select="all", max_tokens=20, temperature=0.7, ignore_eos=True)

    def scores(params: SamplingParams) -> list[dict[str, object]]:
        output = llm.generate(["Make 33 from 8 9 3."], params, use_tqdm=False)[0]
        return [{"score": c.score, "tot_mass": c.tot_mass, "tokens": c.num_tokens} for c in output.nex.candidates]

    def given(num_tokens: int) -> dict[str, object]:
        """Record a given response of all but three of so many tokens."""
        prompt = {"prompt_token_ids": list(range(5, 5 + num_tokens))}
        params = SamplingParams(max_tokens=1, temperature=0, nex_select=True, nex_response_start=3)
        candidate = llm.generate(prompt, params, use_tqdm=False)[0].nex.candidates[0]
        return {"score": candidate.score, "tokens": candidate.num_tokens}

    def leftovers_after_abort(params: SamplingParams, num_tokens: int, num_steps: int) -> dict[str, list[int]]:
        """Abort a request after some steps; count what the scheduler holds for it before and after."""
        name = engine.add_request("aborted", {"prompt_token_ids": list(range(5, 5 + num_tokens))}, params)
        for _ in range(num_steps):
            engine.step()
        before = [len(scheduler._forced), len(scheduler._masses)]
        engine.abort_request([name or "aborted"])
        while engine.has_unfinished_requests():
            engine.step()
        llm.generate(["Make 1 from 2 3."], SamplingParams(max_tokens=2), use_tqdm=False)
        return {"before": before, "after": [len(scheduler._forced), len(scheduler._masses)]}

    forced = SamplingParams(max_tokens=1, temperature=0, nex_select=True, nex_response_start=3)
    runner = type(worker.model_runner)
    result = {
        "runner": f"{runner.__module__}.{runner.__qualname__}",
        "worker": [cls.__qualname__ for cls in type(worker).__mro__],
        "given": {num_tokens: given(num_tokens) for num_tokens in (8, 9, 16, 17, 18, 25)},
        "abort_given": leftovers_after_abort(forced, 40, 2),
        "abort_sampled": leftovers_after_abort(SamplingParams(nex_select="all", max_tokens=50, ignore_eos=True), 6, 5),
        "fresh": scores(choosing),
        "num_steps": type(worker).num_steps,
    }
    llm.collective_rpc("reload_weights")
    result["reloaded"] = scores(choosing)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
