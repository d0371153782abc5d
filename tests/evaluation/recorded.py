"""Caches whose responses are made up, and texts that try to get out of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nex_vllm.algorithm import judge_response
from nex_vllm.algorithm.scores import Masses
from nex_vllm.evaluation.report.content import Report
from nex_vllm.evaluation.report.responses import ShownResponses, describe_response
from nex_vllm.storage import CachedResponse, CacheMeta, CacheWriter, CandidateTable, Diagnostics, write_candidates
from nex_vllm.storage.comparison_file import (
    Agreement,
    Comparison,
    Margin,
    Measured,
    NexResult,
    SelectorResult,
    write_comparison,
)
from tests.cli.recorded import NUM_LAYERS, ROW_TOKENS, TOP_K, WIDTH, recorded_rows

META = CacheMeta("no such model", "0" * 32, NUM_LAYERS, WIDTH, TOP_K, ROW_TOKENS)

HOSTILE = (
    "</script><script>window.stolen = 1</script>",
    "<!-- <script> a comment that would swallow the rest",
    "<img src=x onerror='window.stolen = 1'><svg onload=alert(1)>",
    "]]> {{ 7 * 7 }} {% for %} ${alert(1)} `${window.stolen = 1}` \\u003c/script\\u003e &lt;b&gt;",
    "line\u2028separator\u2029and NUL \x00 bell \x07 escape \x1b[31m delete \x7f",
    "right to left \u202emordnilap\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 e\u0301 \ufffe " + "\u0335\u0321" * 40,
    "w" * 3000,
    "javascript:window.stolen=1 $\\frac{1}{0}$ %s %d \\",
)


def write_cache(directory: Path, texts: Sequence[str], num_rows: int = 12) -> Path:
    """Write a cache with a response for each text; ids, prompts and chats are as hostile as the texts."""
    with CacheWriter(directory, META) as writer:
        for number, text in enumerate(texts):
            name = f"{number}: {text[:40]}" if text in HOSTILE else f"response-{number}"
            rows = recorded_rows(name, number, num_rows)
            chat = [{"role": "user", "content": text}, {"role": "user", "content": [{"type": "image"}]}]
            asked = {"prompt": text} if number % 2 else {"messages": chat}
            writer.add(CachedResponse(name, text, [5] * rows.num_tokens, "stop", **asked), rows)
    return directory


def write_comparison_directory(directory: Path, problems: int = 6, n: int = 4) -> Path:
    """Write a comparison of made-up candidates: candidates.parquet, comparison.json, and cache/ without the last."""
    names = [f"{problem}-{k}" for problem in _problems(problems) for k in range(n)]
    rng = np.random.default_rng(0)
    texts = [f"thinking of {HOSTILE[row % len(HOSTILE)]} for {name}" for row, name in enumerate(names)]
    score, correct = rng.uniform(0.9, 1.0, len(names)), rng.random(len(names)) < 0.5
    chosen = np.zeros(len(names), dtype=np.bool_)
    chosen[np.arange(0, len(names), n) + score.reshape(-1, n).argmax(1)] = True
    score[1] = np.nan
    directory.mkdir()
    write_candidates(
        directory / "candidates.parquet",
        CandidateTable(
            problems=_problems(problems),
            offsets=np.arange(0, len(names) + 1, n),
            text=texts,
            token_ids=[np.full(96, 5, np.int32) for _ in names],
            num_tokens=np.full(len(names), 96, np.int32),
            finish_reason=["stop"] * len(names),
            answer=["<b>42</b>"] * len(names),
            correct=correct.tolist(),
            signals={"score": score},
            chosen={"nex": chosen, "first": np.arange(len(names)) % n == 0},
        ),
    )
    with CacheWriter(directory / "cache", META) as writer:
        for row, name in enumerate(names[:-1]):
            rows = recorded_rows(name, row, 12)
            writer.add(CachedResponse(name, texts[row], [5] * 96, "stop", prompt="What is 6 * 7?"), rows)
    selectors = {
        "nex": SelectorResult(0.5, 0.1, -0.05, 0.25, 3, 2, 1, 96.0, -0.12, 0.3),
        "random": SelectorResult(0.4, 0.0, 0.0, 0.0, 0, 6, 0, 96.0),
        "shortest": SelectorResult(0.35, -0.05, -0.2, 0.1, 1, 3, 2, 80.5),
        "oracle": SelectorResult(0.9, 0.5, 0.3, 0.7, 5, 1, 0, 96.0),
    }
    diagnostics = Diagnostics(
        num_prompts=60, split_half_agreement=0.31, score_spread=0.0005, warnings=("<b>agreement</b> is near chance",)
    )
    comparison = Comparison(
        num_problems=problems,
        num_graded=problems,
        n=n,
        selectors=selectors,
        nex=NexResult(0.5, 0.4, 0.3, partial_correlation=Measured(0.12, -0.1, 0.3)),
        agreement=Agreement(["nex", "shortest"], [[1.0, 0.5], [0.5, 1.0]], 0.25),
        margins={"nex": Margin(0.0004, 0.0005, 0.0)},
        diagnostics=diagnostics.to_json(),
        left_out={"majority": "no answer was extracted <script>"},
        notes=["2 candidates have no score"],
        made_with={"model": "no such model", "seed": 0, "sampling": {"temperature": 0.7}},
    )
    write_comparison(directory / "comparison.json", comparison)
    return directory


def report_of_many(count: int, most: int, num_rows: int = 60) -> Report:
    """Return a report on ``count`` responses of ordinary length, ``most`` of which are shown.

    Response n says "number n," in each row, and once "the needle n". Few are judged, for judging takes long: every
    thirteenth has the same rows.
    """
    kinds = [recorded_rows("", seed, num_rows) for seed in range(13)]
    judged = [judge_response(rows) for rows in kinds]
    shown = ShownResponses(most)
    for number in range(count):
        name, kind = f"problem-{number // 4}-{number % 4}", number % len(kinds)
        texts = [f"In row {row} number {number}, as before, is {row * number}.\n" for row in range(num_rows)]
        texts[number % num_rows] += f"the needle {number}.\n"
        response = CachedResponse(name, "".join(texts), [5] * kinds[kind].num_tokens, "stop", prompt="What is 6 * 7?")
        masses = Masses(1.0 + number % 101, 102.0, 500.0)
        rows = replace(kinds[kind], response=name)
        shown.add(*describe_response(response, rows, judged[kind], masses, (texts, True), {"correct": number % 3 == 0}))
    return Report("Many responses", "nex-vllm test", row_tokens=ROW_TOKENS, shown=shown)


def _problems(count: int) -> list[str]:
    return [f"problem <{p}>" for p in range(count)]
