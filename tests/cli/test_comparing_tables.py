"""`compare` on a table of candidates, and `fit`, from the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nex_vllm.storage import load_selector, read_candidates, write_candidates
from tests.cli.conftest import Run, ok
from tests.cli.fake_engine import FakeSession
from tests.cli.test_bad_input import refused
from tests.evaluation.tables import drawn_table


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


def test_majority_is_there_where_a_table_from_elsewhere_has_answers_and_no_votes(run: Run, tmp_path: Path) -> None:
    table = replace(drawn_table(6), answer=["7", "8", "7", None] * 6)
    write_candidates(tmp_path / "c.parquet", table)
    done = ok(run("compare", tmp_path / "c.parquet", "--out", tmp_path / "out"))
    assert "left out: majority" not in done.err
    compared = read_candidates(tmp_path / "out" / "candidates.parquet")
    assert compared.signals["votes"].tolist()[:3] == [2, 1, 2]
    assert {"majority", "majority_nex", "majority_logprob"} <= compared.chosen.keys()
    assert compared.chosen["majority"].tolist() == [True, False, False, False] * 6


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
    assert "note: `learned` was fitted to 60 of these 60 problems (by their ids)" in compared.err
    unseen = replace(drawn_table(60, seed=2, knows=2.0), problems=[f"unseen {p}" for p in range(60)], meta=meta)
    write_candidates(tmp_path / "unseen.parquet", unseen)
    assert "was fitted to" not in ok(run("compare", tmp_path / "unseen.parquet", "--selector-file", out)).err
    refused(run("fit", path, "--out", out), out, "already exists", "--force")
    other = replace(drawn_table(30), signals={"logprob": np.zeros(120)})
    write_candidates(path, other)
    refused(run("compare", path, "--selector-file", out, "--selectors", "learned"), "signals score, entropy, which")
    write_candidates(path, drawn_table(19))
    refused(run("fit", path, "--out", tmp_path / "s.json"), "19 problems are graded, expected at least 20")
    assert not (tmp_path / "s.json").exists()
