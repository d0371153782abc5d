"""`nex-vllm sweep`: the table, the files, and what is refused before the work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter, CandidateTable, write_candidates
from tests.cli.conftest import Outcome, Run
from tests.cli.recorded import NUM_LAYERS, ROW_TOKENS, TOP_K, WIDTH, recorded_rows

PROBLEMS, SAMPLES = 5, 3


def write_samples(directory: Path, seed: int, *, row_tokens: int = ROW_TOKENS) -> Path:
    """Record several responses to each prompt."""
    with CacheWriter(directory, CacheMeta("a model", "0" * 32, NUM_LAYERS, WIDTH, TOP_K, row_tokens)) as writer:
        for p in range(PROBLEMS):
            for k in range(SAMPLES):
                rows = recorded_rows(f"p{p}-{k}", seed + SAMPLES * p + k)
                response = CachedResponse(rows.response, "text", [5] * rows.num_tokens, "stop", prompt_id=f"p{p}")
                writer.add(response, rows)
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "calibration", 0)


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    """Return a comparison's table, with the recording of its candidates beside it."""
    (tmp_path / "comparison").mkdir()
    write_samples(tmp_path / "comparison" / "cache", 1000)
    count = PROBLEMS * SAMPLES
    table = CandidateTable(
        problems=[f"p{p}" for p in range(PROBLEMS)],
        offsets=np.arange(PROBLEMS + 1, dtype=np.int64) * SAMPLES,
        text=["text"] * count,
        token_ids=[np.array([5], np.int32)] * count,
        num_tokens=np.full(count, 320, np.int32),
        finish_reason=["stop"] * count,
        answer=[None] * count,
        correct=[k % 2 == 0 for k in range(count)],
    )
    path = tmp_path / "comparison" / "candidates.parquet"
    write_candidates(path, table)
    return path


def table_of(done: Outcome) -> dict[str, list[str]]:
    """The printed table by the names of its lines, without the marks of the base."""
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if "=" in line.split("   ")[0]]
    return {line.split()[0]: line.replace(" * ", " ").split()[1:] for line in lines}


def test_every_value_has_a_line_and_the_base_is_marked(run: Run, cache: Path) -> None:
    done = run("sweep", cache, "--over", "row_tokens=8,16", "--over", "samples=2", "--over", "credit=all_active")
    lines = table_of(done)
    assert list(lines) == [
        *("row_tokens=8", "row_tokens=16"),
        *("samples=2", "samples=all"),
        *("credit=introduced", "credit=all_active"),
    ]
    assert lines["row_tokens=8"] == lines["samples=all"] == lines["credit=introduced"]
    assert lines["row_tokens=8"] != lines["row_tokens=16"]
    starred = [line.split()[0] for line in done.out.splitlines() if " * " in line]
    assert starred == ["row_tokens=8", "samples=all", "credit=introduced"]
    words = " ".join(done.out.split())
    assert "the others at the base (*): top_k 24, row_tokens 8, rho 0.95, min_run 2, credit introduced" in words
    assert " right " not in words


def test_numbers_are_those_of_a_calibration(run: Run, cache: Path, tmp_path: Path) -> None:
    """The base's diagnostics are what `calibrate` says of the same cache, and so are those of another rho."""
    out = tmp_path / "sweep"
    assert run("sweep", cache, "--over", "rho=0.6", "--out", out).status == 0
    found = json.loads((out / "sweep.json").read_text())
    assert found["format"] == "nex-sweep/1"
    assert [point["value"] for point in found["points"]] == [None, 0.6]
    for point, flags in zip(found["points"], ([], ["--rho", 0.6]), strict=True):
        summary = tmp_path / f"{point['value']}.json"
        learned = ["--from-cache", cache, "--out", tmp_path / f"{point['value']}.w", "--json", summary]
        assert run("calibrate", *learned, *flags).status == 0
        assert point["diagnostics"] == json.loads(summary.read_text())["diagnostics"]
        assert point["num_weights"] > 100
        assert point["accuracy"] is None


def test_accuracy_is_swept_over_where_candidates_are_graded(
    run: Run, cache: Path, candidates: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    flags = ["--over", "row_tokens=8,16", "--candidates", candidates, "--out", out]
    done = run("sweep", cache, *flags)
    lines = table_of(done)
    points = json.loads((out / "sweep.json").read_text())["points"]
    for point in points:
        shown = lines[f"row_tokens={point['settings']['row_tokens']}"]
        place = shown.index("%")
        assert shown[place - 1] == f"{100 * point['accuracy']:.1f}"
        assert shown[place + 1] == f"{100 * point['gain']:+.1f}"
        assert point["accuracy"] - point["gain"] == pytest.approx(8 / 15)
    assert max(map(len, done.out.splitlines()[:-1])) <= 120
    picture = (out / "sweep.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    again = run("sweep", cache, *flags)
    assert again.status == 2
    assert "sweep.json already exists" in again.err
    assert run("sweep", cache, *flags, "--force").status == 0


def test_base_is_rows_of_32_tokens_where_single_tokens_were_recorded(run: Run, tmp_path: Path) -> None:
    meta = CacheMeta("a model", "0" * 32, NUM_LAYERS, WIDTH, TOP_K, 1)
    with CacheWriter(tmp_path / "cache", meta) as writer:
        for p in range(2):
            rows = recorded_rows(f"p{p}", p, 64)
            rows.tokens[:] = 1
            writer.add(CachedResponse(rows.response, "text", [5] * 64, "stop", prompt_id=f"p{p}"), rows)
    assert list(table_of(run("sweep", tmp_path / "cache", "--over", "row_tokens=8"))) == [
        "row_tokens=8",
        "row_tokens=32",
    ]
    flags = ["--row-tokens", 4, "--over", "row_tokens=8"]
    assert list(table_of(run("sweep", tmp_path / "cache", *flags))) == ["row_tokens=4", "row_tokens=8"]


def test_what_cannot_be_swept_is_refused_before_the_work(
    run: Run, cache: Path, candidates: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "candidates.parquet"
    alone.write_bytes(candidates.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    over = ["--over", "rho=0.9"]
    for arguments, words in (
        ([cache, "--over", "top_k=12"], "record with --row-tokens 1"),
        ([cache, "--over", "row_tokens=12"], "give a multiple of that"),
        ([cache, "--over", "depth=3"], "expected one of top_k, row_tokens"),
        ([cache], "--over"),
        ([tmp_path / "absent", *over], "absent is not an activation cache"),
        ([cache, *over, "--candidates", tmp_path / "absent.parquet"], "absent"),
        ([cache, *over, "--candidates", alone], "has no cache beside it"),
        ([cache, *over, "--out", cache / "sweep"], "is inside"),
        ([cache, *over, "--out", tmp_path / "no" / "sweep"], "cannot be made"),
        ([cache, *over, "--", "--dtype", "x"], "--dtype"),
    ):
        done = run("sweep", *arguments)
        assert (done.status, done.out) == (2, ""), done
        assert words in done.err
        assert "response]" not in done.err, "no progress, for nothing was begun"
    assert sorted(tmp_path.rglob("*")) == before
    assert len(CacheReader(cache)) == PROBLEMS * SAMPLES
