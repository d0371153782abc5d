"""What lies in a comparison's directory stays what it says it is: settings, candidates, grades and outcome."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from nex_vllm.evaluation.comparison import compare
from nex_vllm.storage import CacheMeta, CacheWriter, Diagnostics, model_fingerprint, read_candidates, write_candidates
from nex_vllm.storage.comparison_file import TABLE_NAME, read_comparison, write_comparison
from nex_vllm.storage.comparison_settings import canonical_options
from tests.cli.conftest import Run, last_line, ok
from tests.cli.fake_engine import FakeSession
from tests.cli.recorded import NUM_LAYERS, ROW_TOKENS, TOP_K, WIDTH
from tests.cli.test_bad_input import refused
from tests.evaluation.tables import drawn_table

DIAGNOSTICS = Diagnostics(num_prompts=3, num_responses=6, late_bad_mass=0.25, warnings=("few prompts",))


def test_candidates_of_other_engine_options_are_refused(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    tmp_path: Path,
) -> None:
    ok(run(*given, "--", "--dtype", "float32"))
    refused(last_line(run(*given)), "other engine_options ({'dtype': 'float32'}, not {})", "give another --out")
    ok(run(*given, "--", "--dtype=float32", "--gpu-memory-utilization", "0.5"))
    path = tmp_path / "out" / "settings.json"
    found = json.loads(path.read_text())
    del found["engine_options"]  # as earlier versions wrote it
    path.write_text(json.dumps(found))
    ok(run(*given))


def test_engine_options_are_the_same_in_any_order_and_no_secret_is_kept() -> None:
    one = {"dtype": "float32", "hf_overrides": {"b": 1, "a": Path("x")}, "hf_token": "secret"}
    other = {"hf_overrides": {"a": Path("x"), "b": 1}, "dtype": "float32", "max_num_seqs": 3}
    assert json.dumps(canonical_options(one)) == json.dumps(canonical_options(other))
    assert "secret" not in json.dumps(canonical_options(one))


def test_settings_are_written_by_who_has_the_lock(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    model: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    ok(run(*given))
    settings = (out / "settings.json").read_bytes()
    for path in (*(out / "cache").iterdir(), *out.glob("c*.*")):
        path.unlink()
    meta = CacheMeta(str(model), model_fingerprint(model), NUM_LAYERS, WIDTH, TOP_K, ROW_TOKENS)
    with CacheWriter(out / "cache", meta):
        refused(last_line(run(*given, "--seed", 9)), "another process")
        assert (out / "settings.json").read_bytes() == settings


def test_candidates_without_settings_are_refused_in_words(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    tmp_path: Path,
) -> None:
    ok(run(*given))
    (tmp_path / "out" / "settings.json").unlink()
    refused(last_line(run(*given)), "nothing says how the candidates in", "were sampled", "give another --out")


def test_grades_stay_until_there_are_new_ones(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    tmp_path: Path,
) -> None:
    ok(run(*given))
    grader = tmp_path / "check.py"
    grader.write_text("def right(response, answer):\n    return 1 / 0\n")
    assert run(*given, "--grader", f"{grader}:right").status == 2
    assert read_candidates(tmp_path / "out" / TABLE_NAME).correct[:3] == [False, True, False]


def test_a_comparison_is_not_replaced_unasked_and_keeps_its_diagnostics(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "candidates.parquet"
    write_candidates(path, drawn_table(5))
    write_comparison(tmp_path / "comparison.json", replace(compare(drawn_table(5))[0], diagnostics=DIAGNOSTICS))
    before = (tmp_path / "comparison.json").read_bytes()
    refused(run("compare", path, "--out", tmp_path), "candidates.parquet already exists", "--force")
    assert (tmp_path / "comparison.json").read_bytes() == before
    ok(run("compare", path, "--out", tmp_path, "--selectors", "logprob", "--force"))
    assert read_comparison(tmp_path / "comparison.json").diagnostics == DIAGNOSTICS
    other = tmp_path / "other"
    other.mkdir()
    (other / "comparison.json").write_bytes(before)
    refused(run("compare", path, "--out", other), "other/comparison.json already exists")
    ok(run("compare", path, "--out", other, "--force"))
    assert read_comparison(other / "comparison.json").diagnostics == DIAGNOSTICS
    write_candidates(path, replace(drawn_table(5), meta={"n": 4}))
    ok(run("compare", path, "--out", other, "--force"))
    assert read_comparison(other / "comparison.json").diagnostics is None, "they are those of other candidates"
