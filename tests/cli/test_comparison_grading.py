"""What is given to `compare` fits together, or is refused before anything is sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nex_vllm.cli.comparison_grading import choose_grading
from nex_vllm.errors import InputError
from nex_vllm.evaluation.problems import load_problems
from nex_vllm.storage import (
    SelectorFile,
    load_selector,
    load_weights,
    model_fingerprint,
    read_candidates,
    save_selector,
    write_candidates,
)
from nex_vllm.storage.weights import weights_digest
from tests.cli.conftest import Run, last_line, ok, write_lines
from tests.cli.fake_engine import FakeSession
from tests.cli.recorded import recorded_rows, write_cache
from tests.cli.test_bad_input import refused
from tests.evaluation.tables import drawn_table


def test_weights_and_a_calibration_that_did_not_give_them_are_refused(
    run: Run,
    given: list[object],
    model: Path,
    calibration: Path,
    tmp_path: Path,
) -> None:
    """No stand-in for the engine here: it must not be started."""
    rows = [recorded_rows(f"c{n}", 90 + n) for n in range(4)]
    other = write_cache(tmp_path / "other", rows, fingerprint=model_fingerprint(model))
    weights = tmp_path / "w"
    ok(run("calibrate", "--from-cache", other, "--out", weights))
    done = run(*given, "--weights", weights, "--calibration", calibration)
    refused(last_line(done), "--weights", f"not those that the calibration {calibration} gives", "leave out")
    assert not (tmp_path / "out").exists()


def test_a_selector_that_needs_scores_is_refused_where_there_are_none(
    run: Run,
    given: list[object],
    tmp_path: Path,
) -> None:
    path = tmp_path / "selector.json"
    save_selector(path, SelectorFile(["score"], {"score": 1.0}, 8, 2048))
    refused(last_line(run(*given, "--selector-file", path)), "needs neuron weights", "give --weights or --calibration")
    assert not (tmp_path / "out").exists()


def test_a_selector_knows_the_weights_that_its_scores_came_from(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    calibration: Path,
    tmp_path: Path,
) -> None:
    weights, path, out = tmp_path / "w", tmp_path / "c.parquet", tmp_path / "selector.json"
    ok(run("calibrate", "--from-cache", calibration, "--out", weights))
    digest = weights_digest(load_weights(weights))
    write_candidates(path, replace(drawn_table(40, seed=1), meta={"weights_digest": digest}))
    ok(run("fit", path, "--out", out))
    assert load_selector(out).weights_digest == digest
    write_candidates(path, replace(drawn_table(5), meta={"weights_digest": "0" * 64}))
    refused(run("compare", path, "--selector-file", out), f"digest {digest}", f"have {'0' * 64}")
    save_selector(out, replace(load_selector(out), weights_digest="0" * 64), force=True)
    refused(last_line(run(*given, "--weights", weights, "--selector-file", out)), f"have {digest}")
    ok(run(*given, "--weights", weights, "--selectors", "nex"))
    assert read_candidates(tmp_path / "out" / "candidates.parquet").meta["weights_digest"] == digest


def test_how_questions_are_asked_is_said(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    tmp_path: Path,
) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"question": "x", "answer": "1"}])
    given[given.index("--problems") + 1] = path
    assert f"note: {path} is read as questions with answers; each question ends with: Please" in run(*given).err


def test_a_right_answer_that_the_grader_cannot_read_is_found_before_anything_is_sampled(tmp_path: Path) -> None:
    lines = [{"id": "a", "prompt": "1 + 1", "answer": "2"}, {"id": "b", "prompt": "many", "answer": "25 apples"}]
    path = write_lines(tmp_path / "problems.jsonl", lines)
    with pytest.raises(InputError, match="problem 'b' is '25 apples', which --grader numeric cannot read"):
        choose_grading("numeric", None, load_problems(str(path)), str(path))
    assert choose_grading("exact", "boxed", load_problems(str(path)), str(path)).grader == "exact"
