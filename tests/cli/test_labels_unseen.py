"""Answers in another order change grades, and no choice but the oracle's: `compare` from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.evaluation.tabulation import RECORDED
from nex_vllm.storage import CandidateTable, model_fingerprint, read_candidates, save_selector, write_candidates
from nex_vllm.storage.selector_file import SelectorFile
from tests.cli import fake_engine
from tests.cli.conftest import Run, ok, write_lines
from tests.cli.fake_engine import FakeEngine, FakeSession
from tests.cli.recorded import ROW_TOKENS, TOP_K, recorded_rows, write_cache

NUM_PROBLEMS, N = 10, 4


class TellingEngine(FakeEngine):
    """A stand-in whose responses have every signal and answer 0, 1 or 2, by their seed alone."""

    def step(self) -> Iterable[Any]:
        outputs = list(super().step())
        for output in outputs:
            (candidate,) = output.nex.candidates
            rng = np.random.default_rng(int(candidate.text.removeprefix("text ")))
            candidate.text = f"It is {rng.integers(3)}"
            candidate.signals = {name: -rng.random() for name in RECORDED}
            # The one length of all candidates would leave length nothing to choose by.
            candidate.rows = recorded_rows("0", int(rng.integers(1 << 30)), int(rng.integers(30, 50)))
            candidate.token_ids = [5] * candidate.rows.num_tokens
            candidate.num_scored_tokens = candidate.rows.num_tokens
        return outputs


def changed_choices(one: CandidateTable, other: CandidateTable) -> list[str]:
    """Return the selectors that chose otherwise, of two comparisons whose grades differ and that have all of them."""
    assert one.text == other.text
    assert one.correct != other.correct
    assert one.chosen.keys() == other.chosen.keys() == set(SELECTORS)
    return [name for name in one.chosen if (one.chosen[name] != other.chosen[name]).any()]


def test_shuffled_answers_change_no_choice(
    run: Run, fake: type[FakeSession], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_engine, "FakeEngine", TellingEngine)
    calibration = [recorded_rows(f"c{n}", 50 + n) for n in range(8)]
    cache = write_cache(tmp_path / "calibration", calibration, fingerprint=model_fingerprint(model))
    ok(run("calibrate", "--from-cache", cache, "--out", tmp_path / "weights"))
    selector = SelectorFile(["score", "logprob"], {"score": 1.0, "logprob": 0.5}, ROW_TOKENS, 2048, top_k=TOP_K)
    save_selector(tmp_path / "selector.json", selector)
    chosen_by = ["--selector-file", tmp_path / "selector.json"]
    answers = [n % 3 for n in range(NUM_PROBLEMS)]
    shuffled = np.random.default_rng(0).permutation(answers).tolist()
    tables = []
    for name, given in (("out", answers), ("shuffled", shuffled)):
        problems = write_lines(
            tmp_path / f"{name}.jsonl",
            [{"id": f"p{n}", "prompt": "x" * (n + 1), "answer": str(answer)} for n, answer in enumerate(given)],
        )
        flags = ["-n", N, "--weights", tmp_path / "weights", *chosen_by]
        done = ok(run("compare", model, "--problems", problems, "--out", tmp_path / name, *flags, "--no-noise"))
        assert "--extract last_number" in done.err, "the answers say how answers are found, in any order"
        tables.append(read_candidates(tmp_path / name / "candidates.parquet"))
    assert changed_choices(*tables) == ["oracle"]
    first = tables[0]
    assert len({marks.tobytes() for marks in first.chosen.values()}) > len(SELECTORS) // 2, "they do not choose alike"

    # The same table with its grades shuffled, and no model.
    grades = np.random.default_rng(1).permutation(np.array(first.correct, dtype=np.bool_)).tolist()
    write_candidates(tmp_path / "graded.parquet", replace(first, correct=grades, chosen={}))
    ok(run("compare", tmp_path / "graded.parquet", *chosen_by, "--out", tmp_path / "again"))
    again = read_candidates(tmp_path / "again" / "candidates.parquet")
    assert again.correct == grades
    assert changed_choices(first, again) == ["oracle"]
