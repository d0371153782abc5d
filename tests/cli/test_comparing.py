"""`compare` and `fit` from the command line; a stand-in for the engine gives responses that follow the seed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nex_vllm.storage import CacheReader, load_weights, model_fingerprint, read_candidates, save_weights
from nex_vllm.storage.comparison_file import read_comparison
from nex_vllm.storage.noise_file import ScoreNoise, write_noise
from nex_vllm.storage.weights import weights_digest
from tests.cli.conftest import NUM_CANDIDATES, NUM_PROBLEMS, Run, drop_answers, last_line, ok, write_lines
from tests.cli.fake_engine import FakeSession
from tests.cli.recorded import ROW_TOKENS, recorded_rows, write_cache
from tests.cli.test_bad_input import refused


def test_a_comparison_writes_what_the_contract_says(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    done = ok(run(*given))
    assert "grading by --grader numeric, answers taken from responses by --extract last_number" in done.err
    out = tmp_path / "out"
    table = pq.read_table(out / "candidates.parquet").to_pydict()
    assert table["problem"] == [f"p{n}" for n in range(NUM_PROBLEMS) for _ in range(NUM_CANDIDATES)]
    assert table["candidate"] == list(range(NUM_CANDIDATES)) * NUM_PROBLEMS
    assert table["text"] == [f"text {seed}" for seed in range(NUM_PROBLEMS * NUM_CANDIDATES)]
    assert table["correct"] == [False, True, False] * NUM_PROBLEMS
    assert table["logprob"][:6] == [-0.5, -1.5, -2.5, -3.5, -4.5, -0.5]
    assert table["chosen_logprob"][:6] == [True, False, False, False, False, True]
    outcome = json.loads((out / "comparison.json").read_text())
    assert outcome["format"] == "nex-comparison/1"
    assert outcome["num_problems"] == outcome["num_graded"] == NUM_PROBLEMS
    assert outcome["n"] == NUM_CANDIDATES
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
    assert "left out: nex: the candidates have no score; `compare MODEL` gives them one" in done.err
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


def test_the_weights_behind_the_scores_are_kept_and_the_report_has_them(
    run: Run, fake: type[FakeSession], given: list[object], problems: Path, calibration: Path, tmp_path: Path
) -> None:
    """They are those that `calibrate` would write, metadata included; from --weights too."""
    drop_answers(problems)
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
    done = ok(run(*given, "--weights", weights, "--accept-other-model", "--no-noise"))
    assert f"note: {weights} says nothing of its calibration; calibrate again" in done.err
    noise = ScoreNoise(0.25, 18, weights_digest(load_weights(kept)))
    write_noise(tmp_path / "out" / "noise.json", noise)
    ok(run(*given, "--weights", weights, "--accept-other-model"))
    assert read_comparison(tmp_path / "out" / "comparison.json").diagnostics.score_noise == 0.25  # type: ignore[union-attr]
    assert load_weights(kept).meta == other, "no record of a calibration is made up"
    ok(run(*page))
    save_weights(kept, replace(load_weights(kept), weights=-load_weights(kept).weights), force=True)
    ok(run(*page))
    text = (tmp_path / "page.html").read_text()
    assert "are not those that the candidates were scored with" in text
    assert "Neuron weights</h2>" not in text
    ok(run(*given))
    ok(run(*page))
    assert "Neuron weights</h2>" not in (tmp_path / "page.html").read_text(), "these candidates have no scores"


def test_a_calibration_in_rows_of_one_token_scores_in_the_rows_that_are_asked_for(
    run: Run, fake: type[FakeSession], given: list[object], problems: Path, single_tokens: Path, tmp_path: Path
) -> None:
    """`--calibration` learns what `calibrate --from-cache` with the same rows does."""
    drop_answers(problems)
    ok(run("calibrate", "--from-cache", single_tokens, "--row-tokens", ROW_TOKENS, "--out", tmp_path / "w"))
    ok(run(*given, "--calibration", single_tokens, "--no-noise"))
    kept, learned = load_weights(tmp_path / "out" / "weights.safetensors"), load_weights(tmp_path / "w")
    assert kept.meta == learned.meta
    assert (kept.weights == learned.weights).all()
    ok(run(*given, "--calibration", single_tokens, "--weights", tmp_path / "w", "--no-noise"))


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
    drop_answers(problems)
    done = ok(run(*given))
    assert "share of problems with the same choice" in done.out
    assert "best over second" in done.out
    assert read_candidates(tmp_path / "out" / "candidates.parquet").correct == [None] * 18


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
        ([*given, "--calibration", short, "--row-tokens", 9], [short, "row_tokens 9", "have 8 tokens"]),
        ([*given, "--calibration", tmp_path / "absent"], ["absent is not an activation cache"]),
        ([*given, "--weights", bare], [bare, "not a sound safetensors file"]),
        ([*given, "--top-p", 0], ["--top-p is 0"]),
        ([*given[:4], "--out", bare, *given[6:]], [f"the output {bare} is not a directory"]),
        ([*given[:4], "--out", tmp_path / "full", *given[6:]], ["'thesis.tex' and nothing of a comparison"]),
        ([*given[:4], "--out", tmp_path / "no" / "where", *given[6:]], ["cannot be made"]),
    ):
        done = run(*arguments)
        refused(last_line(done), *words)
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
        refused(last_line(run(*given, *flags)), name)
    write_lines(problems, [json.loads(line) for line in problems.read_text().splitlines()][::-1])
    refused(last_line(run(*given)), "other problems")
    assert len(CacheReader(tmp_path / "out" / "cache")) == 18


def test_settings_may_change_while_nothing_is_sampled(
    run: Run, fake: type[FakeSession], given: list[object], problems: Path
) -> None:
    lines = problems.read_text()
    write_lines(problems, [{"prompt": "x" * 1000}])
    assert "the prompt has 1000 tokens" in run(*given).err
    problems.write_text(lines)
    ok(run(*given, "--seed", 5))


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
