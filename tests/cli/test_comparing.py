"""`compare` and `fit` from the command line; a stand-in for the engine gives responses that follow the seed."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nex_vllm.storage import (
    CacheReader,
    decode_diagnostics,
    load_selector,
    load_weights,
    model_fingerprint,
    read_candidates,
    read_responses,
    save_weights,
    write_candidates,
)
from nex_vllm.storage.comparison_file import read_comparison
from nex_vllm.storage.noise_file import ScoreNoise, write_noise
from nex_vllm.storage.weights import weights_digest
from tests.cli.conftest import Outcome, Run, write_lines
from tests.cli.fake_engine import FakeSession
from tests.cli.recorded import ROW_TOKENS, TOP_K, recorded_rows, write_cache
from tests.cli.test_bad_input import refused
from tests.evaluation.tables import drawn_table

NUM_PROBLEMS, N = 6, 3
FLAGS = ["-n", N, "--top-k", TOP_K, "--row-tokens", ROW_TOKENS]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Return problems whose candidate k says the number 3 * place + k, which is right for k = 1."""
    lines = [{"id": f"p{n}", "prompt": "x" * (n + 1), "answer": f"{3 * n + 1}.0"} for n in range(NUM_PROBLEMS)]
    return write_lines(tmp_path / "problems.jsonl", lines)


@pytest.fixture
def given(model: Path, problems: Path, tmp_path: Path) -> list[object]:
    return ["compare", model, "--problems", problems, "--out", tmp_path / "out", *FLAGS]


def ok(done: Outcome) -> Outcome:
    assert done.status == 0, done.err
    return done


def test_a_comparison_writes_what_the_contract_says(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    done = ok(run(*given))
    assert "grading by --grader numeric, answers taken from responses by --extract last_number" in done.err
    out = tmp_path / "out"
    table = pq.read_table(out / "candidates.parquet").to_pydict()
    assert table["problem"] == [f"p{n}" for n in range(NUM_PROBLEMS) for _ in range(N)]
    assert table["candidate"] == list(range(N)) * NUM_PROBLEMS
    assert table["text"] == [f"text {seed}" for seed in range(NUM_PROBLEMS * N)]
    assert table["correct"] == [False, True, False] * NUM_PROBLEMS
    assert table["logprob"][:6] == [-0.5, -1.5, -2.5, -3.5, -4.5, -0.5]
    assert table["chosen_logprob"][:6] == [True, False, False, False, False, True]
    outcome = json.loads((out / "comparison.json").read_text())
    assert outcome["format"] == "nex-comparison/1"
    assert (outcome["num_problems"], outcome["num_graded"], outcome["n"]) == (NUM_PROBLEMS, NUM_PROBLEMS, N)
    names = {"accuracy", "gain", "gain_low", "gain_high", "wins", "ties", "losses", "mean_tokens"}
    assert all(result.keys() == names for result in outcome["selectors"].values())
    assert outcome["selectors"]["random"]["accuracy"] == pytest.approx(1 / 3)
    assert outcome["selectors"]["oracle"]["accuracy"] == 1
    assert outcome["nex"] is None
    assert outcome["diagnostics"] is None
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    lines = done.out.splitlines()
    assert any(line.split()[:3] == ["oracle", "100.0", "%"] for line in lines)
    assert max(len(line) for line in lines if "/" not in line) <= 110
    assert "left out: nex: the candidates have no score; give --weights or --calibration" in done.err
    assert "left out: learned" in done.err


def test_with_a_calibration_nex_is_compared_with_both_intervals_and_diagnostics(
    run: Run, fake: type[FakeSession], given: list[object], model: Path, tmp_path: Path
) -> None:
    """Weights learned from the cache by `calibrate` give the same scores as the cache itself."""
    responses = [recorded_rows(f"c{n}", 50 + n) for n in range(8)]
    cache = write_cache(tmp_path / "calibration", responses, fingerprint=model_fingerprint(model))
    done = ok(run(*given, "--calibration", cache, "--no-noise"))
    out = tmp_path / "out"
    comparison = read_comparison(out / "comparison.json")
    assert comparison.nex is not None
    assert comparison.selectors["nex"].gain_low_calibration is not None
    assert comparison.diagnostics is not None
    assert comparison.diagnostics.num_responses == 8
    for words in ("right by NEX score: best ", "length held fixed", "over problems and calibrations", "late_bad_mass"):
        assert words in done.out
    scores = read_candidates(out / "candidates.parquet").signals["score"]
    weights = tmp_path / "w"
    ok(run("calibrate", "--from-cache", cache, "--out", weights))
    ended = fake.last.num_ended
    ok(run(*given, "--weights", weights, "--no-noise"))
    assert fake.last.num_ended == ended, "nothing was sampled again"
    table = read_candidates(out / "candidates.parquet")
    assert (table.signals["score"] == scores).all()
    assert len(table.meta["weights_sha256"]) == 64
    comparison = read_comparison(out / "comparison.json")
    assert comparison.selectors["nex"].gain_low_calibration is None, "there is no cache to draw from"
    assert comparison.diagnostics is not None, "those of the weights' metadata"
    ok(run(*given, "--weights", weights, "--calibration", cache, "--no-noise"))


def _drop_answers(problems: Path) -> None:
    """Leave nothing to grade: intervals take seconds."""
    lines = [json.loads(line) for line in problems.read_text().splitlines()]
    write_lines(problems, [{name: value for name, value in line.items() if name != "answer"} for line in lines])


@pytest.fixture
def calibration(model: Path, tmp_path: Path) -> Path:
    responses = [recorded_rows(f"c{n}", 50 + n) for n in range(8)]
    return write_cache(tmp_path / "calibration", responses, fingerprint=model_fingerprint(model))


def test_the_weights_behind_the_scores_are_kept_and_the_report_has_them(
    run: Run, fake: type[FakeSession], given: list[object], problems: Path, calibration: Path, tmp_path: Path
) -> None:
    """They are those that `calibrate` would write, metadata included; from --weights too."""
    _drop_answers(problems)
    weights, kept = tmp_path / "w", tmp_path / "out" / "weights.safetensors"
    ok(run("calibrate", "--from-cache", calibration, "--out", weights))
    page = ["report", tmp_path / "out", "--out", tmp_path / "page.html", "--force"]
    ok(run(*given))
    assert not kept.exists()
    ok(run(*page))
    assert "Neuron weights</h2>" not in (tmp_path / "page.html").read_text()
    done = ok(run(*given, "--calibration", calibration, "--no-noise"))
    assert "wrote candidates.parquet, comparison.json, weights.safetensors" in done.out
    first, second = load_weights(kept), load_weights(weights)
    assert first.meta == second.meta
    assert (first.keys == second.keys).all()
    assert (first.weights == second.weights).all()
    ok(run(*page))
    text = (tmp_path / "page.html").read_text()
    assert "Neuron weights</h2>" in text
    assert "as the comparison scored them" in text
    other = replace(load_weights(weights).meta, diagnostics=None, model_fingerprint="0" * 32, rho=0.9)
    save_weights(weights, replace(load_weights(weights), meta=other), force=True)
    ok(run(*given, "--weights", weights, "--accept-other-model", "--no-noise"))
    assert load_weights(kept).meta == other
    ok(run(*page))
    ok(run(*given))
    ok(run(*page))
    assert "Neuron weights</h2>" not in (tmp_path / "page.html").read_text(), "these candidates have no scores"


def test_noise_is_not_measured_again_for_the_same_weights(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    problems: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _drop_answers(problems)
    out = tmp_path / "out"
    given = [*given, "--calibration", calibration]
    done = ok(run(*given, "--no-noise"))
    (line,) = (line for line in done.out.splitlines() if line.startswith("score_noise"))
    assert line.split(None, 1)[1].startswith("not measured ")
    assert _noise_in(out) is None
    # No other process can be started from here on.
    noise = ScoreNoise(0.25, 18, weights_digest(load_weights(out / "weights.safetensors")))
    write_noise(out / "noise.json", noise)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    done = ok(run(*given))
    (line,) = (line for line in done.out.splitlines() if line.startswith("score_noise"))
    assert line.split()[1] == "0.250000"
    assert "warning: score_noise is 0.25, more than a tenth of the spread" in done.out
    assert "twice" not in done.err
    assert _noise_in(out) == 0.25
    write_noise(out / "noise.json", replace(noise, weights_digest="of others"))
    done = ok(run(*given))
    assert "twice" in done.err
    assert "note: score_noise was not measured: " in done.err
    assert _noise_in(out) is None
    refused(_last_line(run("compare", *given[1:-2], "--no-noise")), "--no-noise has no effect without scores")


def _noise_in(out: Path) -> float | None:
    """Return the noise that the comparison and the weights in its directory state alike."""
    told = read_comparison(out / "comparison.json").diagnostics
    kept = load_weights(out / "weights.safetensors").meta.diagnostics
    assert told is not None
    assert kept is not None
    assert decode_diagnostics(kept, "weights") == told
    return told.score_noise


def test_noise_that_cannot_be_measured_is_a_note_and_ctrl_c_loses_nothing(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    problems: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other process is a shell script: one that keeps what it was given and fails, one that presses Ctrl-C."""
    _drop_answers(problems)
    out, script = tmp_path / "out", tmp_path / "python"
    given = [*given, "--calibration", calibration, "--", "--max-num-batched-tokens", 64, "--dtype", "float32"]
    monkeypatch.setattr(sys, "executable", str(script))

    def becomes(*lines: str) -> None:
        script.write_text("\n".join(["#!/bin/sh", *lines]))
        script.chmod(0o755)

    becomes("kill -INT $PPID", "sleep 30")
    done = run(*given)
    assert done.status == 130
    assert f"interrupted: the comparison is in {out}, without the noise of its scores; to measure that" in done.err
    assert "share of problems with the same choice" in done.out
    assert _noise_in(out) is None
    becomes(f'cp "$8" {tmp_path}/kept.jsonl', f'printf "%s\\n" "$@" > {tmp_path}/words', "exit 7")
    done = ok(run(*given))
    note = "score_noise was not measured: `nex-vllm score --check-noise` failed with exit status 7"
    assert f"note: {note}" in done.err
    assert read_comparison(out / "comparison.json").notes[-1].startswith(note)
    assert _noise_in(out) is None
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:6] == ["-m", "nex_vllm.cli", "score", str(given[1]), "--weights", str(out / "weights.safetensors")]
    assert words[8:] == ["--check-noise", "--out", str(out / "noise.json"), "--force", "--", "--dtype", "float32"]
    lines = read_responses(tmp_path / "kept.jsonl")
    assert len(lines) == 18
    assert {line.prompt for line in lines} == {"x" * (n + 1) for n in range(NUM_PROBLEMS)}
    assert all(len(line.token_ids or []) == 320 for line in lines)
    assert not Path(words[7]).exists()


def test_an_interrupted_comparison_goes_on_and_ends_alike(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    fake.interrupt_after = 7
    done = run(*given)
    assert done.status == 130
    last = done.err.splitlines()[-1]
    assert last.startswith(f"error: interrupted: 7 of 18 responses are kept in {tmp_path / 'out' / 'cache'}; ")
    assert shlex.split(last.split(", run: ")[1]) == ["nex-vllm", *map(str, given)]
    fake.interrupt_after = None
    ok(run(*given))
    assert fake.last.num_ended == 11
    again = [tmp_path / "other" if word == tmp_path / "out" else word for word in given]
    ok(run(*again))
    assert fake.last.num_ended == 18
    for name in ("candidates.parquet", "comparison.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_same_candidates_are_graded_and_compared_otherwise(
    run: Run, fake: type[FakeSession], given: list[object], problems: Path, tmp_path: Path
) -> None:
    ok(run(*given))
    first = read_candidates(tmp_path / "out" / "candidates.parquet")
    done = ok(run(*given, "--grader", "exact", "--extract", "line:text", "--selectors", "length,majority"))
    assert "18 of 18 responses are in" in done.err
    table = read_candidates(tmp_path / "out" / "candidates.parquet")
    assert table.text == first.text
    assert list(table.chosen) == ["shortest", "majority", "random"]
    assert table.meta["extract"] == "line:text"
    _drop_answers(problems)
    done = ok(run(*given))
    assert "share of problems with the same choice" in done.out
    assert "best over second" in done.out
    assert read_candidates(tmp_path / "out" / "candidates.parquet").correct == [None] * 18


def test_candidates_of_before_are_compared_without_a_model(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    ok(run(*given))
    out = tmp_path / "out"
    table, whole = out / "candidates.parquet", (out / "candidates.parquet").read_bytes()
    done = ok(run("compare", table))
    assert "oracle" in done.out
    assert table.read_bytes() == whole
    ok(run("compare", table, "--out", tmp_path / "again", "--selectors", "logprob"))
    again = read_candidates(tmp_path / "again" / "candidates.parquet")
    assert list(again.chosen) == ["logprob", "random"]
    assert (again.chosen["random"] == read_candidates(table).chosen["random"]).all()
    refused(run("compare", table, "--out", tmp_path / "again"), "again/candidates.parquet already exists", "--force")
    ok(run("compare", table, "--out", tmp_path / "again", "--force"))
    assert (tmp_path / "again" / "comparison.json").read_bytes() == (out / "comparison.json").read_bytes()
    refused(run("compare", table, "--out", out, "--selectors", "logprob"), "candidates.parquet already exists")
    ok(run("compare", table, "--out", out, "--selectors", "logprob", "--force"))


def test_flags_that_do_nothing_for_a_table_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    write_candidates(path, drawn_table(5))
    for flags, word in (
        (["-n", 4], "-n"),
        (["--weights", path], "--weights"),
        (["--grader", "exact"], "--grader"),
        (["--seed", 1], "--seed"),
        (["--", "--dtype", "float32"], "an engine option after --"),
    ):
        refused(run("compare", path, *flags), f"{word} has no effect on the candidates in {path}")


def test_a_table_that_is_damaged_or_has_one_candidate_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    refused(run("compare", path), path, "cannot be read")
    write_candidates(path, drawn_table(5, n=1))
    refused(run("compare", path), "there is one candidate a problem, so there is nothing to choose from")
    write_candidates(path, drawn_table(5))
    refused(run("compare", path, "--selectors", "majority"), "names majority", "no answer was extracted")
    refused(run("compare", path, "--selectors", "best"), "no selector 'best'")
    path.write_bytes(path.read_bytes()[:-20])
    refused(run("compare", path), path, "not a sound Parquet file")
    refused(run("fit", path, "--out", tmp_path / "s.json"), path, "not a sound Parquet file")
    assert list(tmp_path.iterdir()) == [path]


def test_bad_input_is_refused_before_anything_is_sampled(
    run: Run, given: list[object], model: Path, problems: Path, tmp_path: Path
) -> None:
    """No stand-in for the engine here: a real one would take a minute to start, and not one does."""
    bare = write_lines(tmp_path / "bare.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    twice = write_lines(tmp_path / "twice.jsonl", [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}])
    foreign = write_cache(tmp_path / "foreign", [recorded_rows("a", 1)])
    short = write_cache(tmp_path / "short", [recorded_rows("a", 1, 3)], fingerprint=model_fingerprint(model))
    (tmp_path / "grader.py").write_text("number = 7\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()

    def with_problems(path: Path) -> list[object]:
        return [path if word == problems else word for word in given]

    for arguments, words in (
        (["compare", model, "--out", tmp_path / "out"], ["--problems FILE is missing"]),
        (["compare", model, "--problems", problems], ["--out DIR is missing"]),
        ([*given, "-n", 1], ["-n is 1, so there is nothing to choose from"]),
        ([*given, "--temperature", 0], ["--temperature 0 gives the same response every time"]),
        ([*given, "--force"], ["--force has no effect"]),
        (with_problems(twice), [f"{twice}:2: id 'x' is already used on line 1"]),
        ([*with_problems(bare), "--grader", "exact"], ["--grader exact was given, but no problem in", "has an answer"]),
        ([*given, "--grader", "exact"], ["--grader exact", "give --extract"]),
        ([*given, "--grader", "fuzzy"], ["there is no grader 'fuzzy'"]),
        ([*given, "--grader", f"{tmp_path}/grader.py:f"], ["has no function 'f'"]),
        ([*given, "--extract", "boxes"], ["'boxes'"]),
        ([*given, "--extract", "pattern:("], ["RE2 refuses"]),
        ([*given, "--selectors", "nex,best"], ["no selector 'best'"]),
        ([*given, "--selectors", "nex"], ["names nex, which cannot be applied", "--weights or --calibration"]),
        ([*given, "--selectors", "learned"], ["names learned", "--selector-file"]),
        ([*with_problems(bare), "--selectors", "majority"], ["names majority", "--extract"]),
        ([*with_problems(bare), "--selectors", "oracle"], ["names oracle", "no candidate is graded"]),
        ([*given, "--selectors", "first", "--selector-file", bare], ["--selector-file has no effect"]),
        ([*given, "--calibration", foreign], [foreign, "model_fingerprint", "0" * 32]),
        ([*given, "--calibration", short], [short, "gave no evidence"]),
        ([*given, "--calibration", short, "--row-tokens", 9], [short, "row_tokens 8", "is 9"]),
        ([*given, "--calibration", tmp_path / "absent"], ["absent is not an activation cache"]),
        ([*given, "--weights", bare], [bare, "not a sound safetensors file"]),
        ([*given, "--top-p", 0], ["--top-p is 0"]),
        ([*given[:4], "--out", bare, *FLAGS], [f"the output {bare} is not a directory"]),
        ([*given[:4], "--out", tmp_path / "full", *FLAGS], ["'thesis.tex' and nothing of a comparison"]),
        ([*given[:4], "--out", tmp_path / "no" / "where", *FLAGS], ["cannot be made"]),
    ):
        done = run(*arguments)
        # What was found out on the way may stand above the error.
        refused(replace(done, err=done.err.splitlines()[-1] + "\n"), *words)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_other_settings_is_refused_by_their_name(
    run: Run, fake: type[FakeSession], given: list[object], problems: Path, tmp_path: Path
) -> None:
    ok(run(*given))
    for flags, name in (
        (["-n", 4], "other n (3, not 4)"),
        (["--seed", 1], "other seed (0, not 1)"),
        (["--temperature", 0.8], "other temperature (0.7, not 0.8)"),
        (["--top-p", 0.8], "other top_p"),
        (["--max-tokens", 9], "other max_tokens (the model's own limit, not 9)"),
        (["--top-k", 25], "other top_k"),
        (["--row-tokens", 9], "other row_tokens"),
    ):
        refused(_last_line(run(*given, *flags)), name)
    write_lines(problems, [json.loads(line) for line in problems.read_text().splitlines()][::-1])
    refused(_last_line(run(*given)), "other problems")
    assert len(CacheReader(tmp_path / "out" / "cache")) == 18


def test_settings_may_change_while_nothing_is_sampled(
    run: Run, fake: type[FakeSession], given: list[object], problems: Path
) -> None:
    lines = problems.read_text()
    write_lines(problems, [{"prompt": "x" * 1000}])
    assert "the prompt has 1000 tokens" in run(*given).err
    problems.write_text(lines)
    ok(run(*given, "--seed", 5))


def _last_line(done: Outcome) -> Outcome:
    return replace(done, err=done.err.splitlines()[-1] + "\n")


def test_a_grader_that_raises_loses_nothing(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    grader = tmp_path / "check.py"
    grader.write_text("def right(response, answer):\n    return 1 / (len(response) - 7) > 0\n")
    done = run(*given, "--grader", f"{grader}:right")
    assert done.status == 2
    assert "raised ZeroDivisionError: division by zero on candidate 1 of problem 'p3' (8 of 18" in done.err
    assert read_candidates(tmp_path / "out" / "candidates.parquet").correct == [None] * 18
    assert not (tmp_path / "out" / "comparison.json").exists()
    grader.write_text("def right(response, answer):\n    return response.endswith(' 1')\n")
    ended = fake.last.num_ended
    ok(run(*given, "--grader", f"{grader}:right"))
    assert fake.last.num_ended == ended
    assert read_candidates(tmp_path / "out" / "candidates.parquet").correct == [False, True] + [False] * 16


def test_fit_writes_a_selector_and_compare_chooses_by_it(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "c.parquet", tmp_path / "selector.json"
    meta = {"row_tokens": 8, "deepconf_window": 99, "extract": "boxed", "model": "m", "n": 4}
    write_candidates(path, replace(drawn_table(60, seed=1, knows=2.0), meta=meta))
    done = ok(run("fit", path, "--out", out))
    file = load_selector(out)
    assert file.signals == ["score", "logprob", "entropy", "num_tokens"]
    assert max(file.coefficients, key=lambda name: abs(file.coefficients[name])) == "score"
    assert (file.row_tokens, file.deepconf_window, file.extract) == (8, 99, None)
    assert file.trained_on["num_problems"] == 60
    assert file.cross_validated["learned"]["gain_low"] > 0
    assert {"nex", "shortest", "random"} <= file.cross_validated.keys()
    rows = [line.split()[0] for line in done.out.splitlines() if line.strip()]
    assert "learned" in rows
    assert "score" in rows
    assert "60 graded problems" in done.out
    compared = ok(run("compare", path, "--selector-file", out))
    assert any(line.startswith("learned") for line in compared.out.splitlines())
    refused(run("fit", path, "--out", out), out, "already exists", "--force")
    other = replace(drawn_table(30), signals={"logprob": np.zeros(120)})
    write_candidates(path, other)
    refused(run("compare", path, "--selector-file", out, "--selectors", "learned"), "signals score, entropy, which")
    write_candidates(path, drawn_table(19))
    refused(run("fit", path, "--out", tmp_path / "s.json"), "19 problems are graded, expected at least 20")
    assert not (tmp_path / "s.json").exists()
