"""The study's arithmetic: the rule for settings, intervals over sets of numbers, figures that `compare` gives too."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import study
from study_commands import CANDIDATES, RUNS, Folders, Trial, candidate_seed
from study_figures import figures
from study_page import NOT_YET, TABLES, fill_page, model_tables, settings_table
from study_runs import LEAF, Run, score_with, without_last_leaf
from study_settings import (
    DEFAULT,
    ROW_TOKENS,
    TOP_K,
    Setting,
    choose,
    least_agreement,
    measure_settings,
)
from study_statistics import Sets, mean_of_runs
from tokenizer import END, build_tokenizer
from traces import problem_stream, worked_solution

from nex_vllm.evaluation.comparison import compare
from nex_vllm.evaluation.diagnostics import diagnose
from nex_vllm.evaluation.evidence import gather_evidence
from nex_vllm.evaluation.sums import sum_candidates
from nex_vllm.storage import (
    CachedResponse,
    CacheMeta,
    CacheReader,
    CacheWriter,
    WeightsFile,
    WeightsMeta,
)
from nex_vllm.storage.comparison_file import write_comparison
from tests.cli.recorded import NUM_LAYERS, WIDTH, recorded_rows
from tests.evaluation.tables import table_of

RESULTS = study.HERE / "results"

P, N = 8, 4


def grid(**under_two: float) -> list[Setting]:
    """Return the nine settings; those named ``kK_wW`` have this share and are admitted, the others are not."""
    return [
        Setting(
            k, w, 0.5 if f"k{k}_w{w}" in under_two else 0.2, under_two.get(f"k{k}_w{w}", 0.0), f"k{k}_w{w}" in under_two
        )
        for k, w in itertools.product(TOP_K, ROW_TOKENS)
    ]


@pytest.mark.parametrize(
    ("claim", "under_two", "expected"),
    [
        ("none admitted: the default", {}, DEFAULT),
        ("the lowest share of those admitted", {"k24_w8": 0.4, "k100_w16": 0.2}, (100, 16)),
        ("a tie within a point goes to the smaller top_k", {"k50_w8": 0.20, "k24_w16": 0.21, "k100_w8": 0.2}, (24, 16)),
        ("then to the row length nearest to 8", {"k50_w16": 0.20, "k50_w4": 0.205}, (50, 4)),
        ("more than a point is no tie", {"k24_w8": 0.212, "k100_w4": 0.2}, (100, 4)),
    ],
)
def test_settings_are_chosen_by_the_protocols_rule(
    claim: str, under_two: dict[str, float], expected: tuple[int, int]
) -> None:
    assert choose(grid(**under_two))[0] == expected, claim


def test_admission_of_200_problems_starts_where_the_protocol_says() -> None:
    assert least_agreement(0.25, 200) == pytest.approx(0.311, abs=5e-4)


def test_runs_share_no_candidate_and_a_seed_belongs_to_one_response() -> None:
    """`record` gives response i of a run the seed + i."""
    seeds = [candidate_seed(k) + i for k in range(1, RUNS + 1) for i in range(500 * CANDIDATES)]
    assert len(set(seeds)) == len(seeds)


def test_the_last_leaf_is_cut_and_nothing_else() -> None:
    tokenizer = build_tokenizer(512)
    leaf = tokenizer.convert_tokens_to_ids(LEAF)
    rng = random.Random(5)
    for problem in itertools.islice(problem_stream(5, "train"), 50):
        text = worked_solution(problem, rng)
        kept = without_last_leaf(tokenizer.encode(text + END), leaf)
        assert tokenizer.decode(kept).split("\n")[:-1] == text.split("\n")[:-2]
    assert without_last_leaf([5, 6], leaf) == [5, 6]


def test_mean_over_runs_draws_problems_of_the_same_numbers_together() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.standard_normal((50, 1)), 4, axis=0) + 0.01 * rng.standard_normal((200, 5))
    together = mean_of_runs(values, Sets.of_problems([[i // 4, 1] if i % 2 else [1, i // 4] for i in range(200)]))
    apart = mean_of_runs(values, Sets.of_problems([[i] for i in range(200)]))
    assert together["value"] == apart["value"] == pytest.approx(values.mean())
    assert together["runs"] == pytest.approx(values.mean(axis=0))
    assert together["standard_deviation"] == pytest.approx(values.mean(axis=0).std(ddof=1))
    error = values[::4].mean(axis=1).std() / np.sqrt(50)
    assert (together["high"] - together["low"]) / 3.92 == pytest.approx(error, rel=0.05)
    assert (apart["high"] - apart["low"]) < 0.6 * (together["high"] - together["low"])


def test_a_share_of_nothing_is_not_a_number() -> None:
    found = mean_of_runs(np.zeros((3, 2)), Sets.of_problems([[1], [2], [3]]), np.zeros((3, 2)))
    assert found == {"value": None, "low": None, "high": None, "runs": [None, None], "standard_deviation": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Return two runs of responses that were recorded in caches, graded by a draw."""
    return [make_run(tmp_path_factory.mktemp("run"), k) for k in range(2)]


def make_run(folder: Path, k: int) -> Run:
    rng = np.random.default_rng(k)
    calibration = gather_evidence(
        [recorded_rows(f"c{i}", 1000 * (k + 1) + i) for i in range(6)], {f"c{i}": f"c{i // 2}" for i in range(6)}
    )
    weights = calibration.evidence.weights()
    meta = WeightsMeta(
        "m", "0" * 32, NUM_LAYERS, WIDTH, 24, 8, 0.95, 2, "introduced", 6, 6, "t", diagnose(calibration).encode()
    )
    lengths = rng.integers(10, 60, size=(P, N))
    rows = [recorded_rows(f"p{p}-{j}", 100 * k + N * p + j, int(lengths[p, j])) for p in range(P) for j in range(N)]
    (folder / "comparison").mkdir()
    with CacheWriter(folder / "comparison" / "cache", CacheMeta("m", "0" * 32, NUM_LAYERS, WIDTH, 24, 8)) as writer:
        for each in rows:
            writer.add(CachedResponse(each.response, "", [5] * each.num_tokens, "stop"), each)
    scores = sum_candidates(rows).scores(weights)
    answers = [[f"Answer: {a} + {b}" for a, b in rng.integers(1, 4, size=(N, 2))] for _ in range(P)]
    table = table_of(
        (rng.random((P, N)) < 0.5).tolist(),
        num_tokens=(8 * lengths).tolist(),
        answer=answers,
        score=scores.reshape(P, N).tolist(),
        logprob=rng.standard_normal((P, N)).tolist(),
        votes=rng.integers(1, 4, size=(P, N)).astype(float).tolist(),
    )
    table.text[:] = [answer for group in answers for answer in group]
    names = ["nex", "shortest", "logprob", "majority", "random", "oracle"]
    comparison, table = compare(table, names, diagnostics=diagnose(calibration))
    return Run(
        folder, WeightsFile(weights.keys, weights.weights, meta), table, comparison, scores + 0.1 * rng.random(P * N), 0
    )


def _rows(group: slice) -> range:
    return range(group.start, group.stop)


SETS = Sets.of_problems([[p // 2] for p in range(P)])


def test_figures_are_those_that_compare_gives_for_each_run(runs: list[Run]) -> None:
    found = figures(runs, SETS)
    for k, run in enumerate(runs):
        for name in ("nex", "shortest", "logprob", "majority", "oracle", "random"):
            assert found["accuracy"][name]["runs"][k] == pytest.approx(run.comparison.selectors[name].accuracy)
        assert run.comparison.nex is not None
        assert found["accuracy"]["nex_worst"]["runs"][k] == pytest.approx(run.comparison.nex.worst)
        gain = run.comparison.selectors["nex"].gain
        assert found["minus_random"]["nex"]["runs"][k] == pytest.approx(gain)
        assert found["each_run"][k]["nex_minus_random"]["value"] == pytest.approx(gain)
        like = found["length"]["pairs_like"]["runs"][k]
        assert like == pytest.approx(run.comparison.nex.like_length.value), "of the same pairs as in comparison.json"
    num_pairs = sum(run.comparison.nex.like_length_pairs for run in runs if run.comparison.nex is not None)
    assert found["length"]["pairs_like"]["num_pairs"] == num_pairs > 0
    assert found["num_sets"] == P // 2
    # The first run's own weights choose among its rows as `compare` did.
    same = found["same_candidates"]
    assert same["nex_minus_random"]["runs"][0] == pytest.approx(found["minus_random"]["nex"]["runs"][0])
    own, others = (
        [max(group, key=lambda row: (scores[row], -row)) for group in map(_rows, runs[0].table.groups)]
        for scores in score_with(runs[0], [run.weights for run in runs])
    )
    assert same["same_choice"] == np.mean([one == other for one, other in zip(own, others, strict=True)])
    assert found["diagnostics"][0]["num_prompts"] == 3
    json.dumps(found, allow_nan=False)


def test_majority_by_value_counts_equal_values_however_they_are_written() -> None:
    table = table_of([[True, False, False, False]], score=[[0.1, 0.2, 0.3, 0.4]])
    table.text[:] = ["Answer: 7", "Answer: 2 * 3", "Answer: 12 / 2", "Answer: 3 +"]
    run = Run(Path(), None, table, None, np.zeros(4), 0)  # type: ignore[arg-type]
    assert run.by_value().tolist() == [1]


def test_pairs_of_like_length_and_the_choice_among_long_candidates_by_hand() -> None:
    """Problem 0: the right one (250) is within 20 % of 210 (0.84) and not of 190 (0.76); it loses to the one of 210."""
    comparison, table = compare(
        table_of(
            [[True, False, False, False], [True, False, True, False]],
            num_tokens=[[250, 210, 190, 100], [100, 120, 90, 400]],
            score=[[0.5, 0.6, 0.9, 0.1], [0.9, 0.5, 0.5, 0.8]],
        ),
        ["nex", "random"],
    )
    run = Run(Path(), None, table, comparison, np.zeros(8), 0)  # type: ignore[arg-type]
    from study_figures import _like_length

    found = _like_length([run], [table.signals["score"]], Sets.of_problems([[0], [1]]))
    # Problem 1: 100 against 120 wins; 90 against 120 differ by 25 %.
    assert (found["pairs_like"]["value"], found["pairs_like"]["num_pairs"]) == (0.5, 2)
    assert (found["pairs_like_and_long"]["value"], found["pairs_like_and_long"]["num_pairs"]) == (0.0, 1)
    among = found["among_long"]
    assert among["num_problems"] == [1]
    assert (among["nex"]["value"], among["random"]["value"], among["shortest"]["value"]) == (0.0, 0.5, 0.0)


def test_page_is_filled_place_by_place_and_says_what_is_not_measured(runs: list[Run]) -> None:
    outcome = {"training_seed": 1, "trial": None, **figures(runs, SETS)}
    page = "".join(
        f"# {name}\n\n<!-- figures: {name} -->\n<!-- figures end -->\n\nafter\n" for name in ["settings", *TABLES]
    )
    empty = fill_page(page, None, [])
    assert empty.count(NOT_YET) == len(TABLES) + 1
    filled = fill_page(empty, None, [outcome])
    assert filled.count(NOT_YET) == 1
    assert fill_page(filled, None, [outcome]) == filled
    assert filled.count("after\n") == len(TABLES) + 1
    assert all(table in filled for table in model_tables([outcome]))
    with pytest.raises(SystemExit, match="a place 'other'"):
        fill_page("<!-- figures: other -->\n<!-- figures end -->", None, [])
    with pytest.raises(SystemExit, match="without its end"):
        fill_page(page + "<!-- figures: settings -->\n", None, [])


def test_settings_are_measured_on_recordings_of_single_tokens(tmp_path: Path) -> None:
    """Synthetic rows, taken for rows of one token each: every setting of the grid follows from them."""
    for name, number in (("calibration", 6), ("development", 4)):
        with CacheWriter(tmp_path / name, CacheMeta("m", "0" * 32, NUM_LAYERS, WIDTH, 100, 1)) as writer:
            for i in range(2 * number):
                rows = recorded_rows(f"{name}{i // 2}-{i % 2}", i + 50 * number, 80)
                rows.tokens[:] = 1
                writer.add(CachedResponse(rows.response, "", [5] * 80, "stop", prompt_id=f"{name}{i // 2}"), rows)
    done: list[int] = []
    found = measure_settings(
        CacheReader(tmp_path / "calibration"), CacheReader(tmp_path / "development"), lambda: done.append(1)
    )
    assert len(found["grid"]) == len(done) == 9
    assert (found["num_prompts"], found["num_problems"], found["chance_agreement"]) == (6, 4, 0.5)
    assert all(0 <= setting["split_half_agreement"] <= 1 for setting in found["grid"])
    assert len({setting["share_under_two_cycles"] for setting in found["grid"]}) > 1, "the settings differ"
    assert "**chosen**" in settings_table(found)


def test_committed_page_says_what_the_committed_results_say(tmp_path: Path) -> None:
    outcomes = sorted(path.name for path in RESULTS.glob("seed-*.json"))
    assert outcomes in ([], ["seed-1.json", "seed-2.json", "seed-3.json"]), "all three models or none"
    page = study.PAGES[0].read_text()
    assert page.count(NOT_YET) == (0 if outcomes else len(TABLES))
    for step in ("settings", "test", "table"):
        assert f"study.py {step}" in page
    study.write_table(check=True)
    stale = tmp_path / "study.md"
    stale.write_text(page.replace("<!-- figures end -->", "one more word\n<!-- figures end -->", 1))
    with pytest.raises(SystemExit, match="says something else"):
        study.write_table(pages=[stale], check=True)


def test_table_without_results_changes_no_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: verdict -->\n\nAbove chance.\n\n<!-- figures end -->\n")
    before = page.read_text()
    for check in (False, True):
        with pytest.raises(SystemExit, match=r"there has neither settings\.json nor a seed-\*\.json"):
            study.write_table(tmp_path / "there", [page], check)
    assert page.read_text() == before


def test_a_run_whose_noise_was_cut_off_is_gone_on_with(tmp_path: Path, runs: list[Run]) -> None:
    """`compare` writes its outcome before it measures the noise, which only the first run has."""
    assert not study.is_compared(tmp_path, has_noise=False)
    comparison = runs[0].comparison
    assert comparison.diagnostics is not None
    write_comparison(tmp_path / "comparison.json", comparison)
    assert study.is_compared(tmp_path, has_noise=False)
    assert not study.is_compared(tmp_path, has_noise=True)
    measured = replace(comparison, diagnostics=replace(comparison.diagnostics, score_noise=1e-6))
    write_comparison(tmp_path / "comparison.json", measured)
    assert study.is_compared(tmp_path, has_noise=True)


def test_table_refuses_the_outcome_of_a_trial(tmp_path: Path) -> None:
    (tmp_path / "seed-1.json").write_text(json.dumps({"trial": "8 problems"}))
    with pytest.raises(SystemExit, match="the outcome of a trial"):
        study.write_table(tmp_path, [tmp_path / "page.md"])


def test_page_has_the_shipped_model_first_and_the_others_by_their_seeds(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {2: "shipped"}
    for seed in (10, 9, 2, 1):
        made = {**figures(runs, SETS), "trial": None, "training_seed": seed, "model_fingerprint": names.get(seed)}
        (tmp_path / f"seed-{seed}.json").write_text(json.dumps(made))
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: main_number -->\n<!-- figures end -->\n")
    monkeypatch.setattr(study, "model_fingerprint", lambda folder: "shipped")
    study.write_table(tmp_path, [page])
    assert re.findall(r"^\| (\d+) \|", page.read_text(), re.MULTILINE) == ["2", "1", "9", "10"]
    (tmp_path / "seed-2.json").unlink()
    with pytest.raises(SystemExit, match="no outcome of the shipped model"):
        study.write_table(tmp_path, [page])


def test_test_split_stays_closed_until_the_chosen_settings_are_in_place(tmp_path: Path) -> None:
    """Found before anything is run: there is no model at all."""
    model = tmp_path / "model"
    with pytest.raises(SystemExit, match=r"settings\.json is missing; run `study\.py settings"):
        study.run_test(model, 1, tmp_path / "out")
    results = tmp_path / "out" / "results"
    results.mkdir()
    (results / "settings.json").write_text(json.dumps({"chosen": {"top_k": 25, "row_tokens": 8}}))
    with pytest.raises(SystemExit, match=r"`settings` chose \{'top_k': 25, 'row_tokens': 8\}; change it"):
        study.run_test(model, 1, tmp_path / "out")


def test_folder_that_was_begun_with_another_sampling_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sampled-with.json").write_text(json.dumps({"temperature": 1.0}))
    with pytest.raises(SystemExit, match="was begun with"):
        study.run_test(tmp_path / "model", 1, tmp_path)


def test_trial_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert Folders.of(tmp_path, Trial()).out == tmp_path
    assert Folders.of(tmp_path, Trial(problems=8, runs=2)).out == tmp_path / "trial-8-problems-2-runs"
