"""`nex-vllm report` says where the page is, and refuses in one sentence."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.recorded import recorded_rows, write_cache


def test_the_page_and_its_pictures_are_named(run: Run, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(f"r{seed}", seed, 16) for seed in range(3)])
    done = run("report", cache, "--out", tmp_path / "page.html", "--responses", 2)
    assert done.status == 0
    first, second = done.out.splitlines()
    assert first.startswith(f"{tmp_path / 'page.html'} is written (")
    names = second.removeprefix("pictures beside it: ").split(", ")
    assert sorted(names) == sorted(path.name for path in tmp_path.glob("*.png")) != []
    assert "The first 2 of 3 responses are here" in (tmp_path / "page.html").read_text()


def test_what_cannot_be_drawn_is_refused_in_one_sentence(run: Run, tmp_path: Path) -> None:
    for arguments, words in (
        ((tmp_path, "--out", tmp_path / "r.html"), "has neither meta.json nor candidates.parquet"),
        ((tmp_path / "gone", "--out", tmp_path / "r.html"), "does not exist"),
        ((tmp_path, "--out", "-"), "is not a path here"),
        ((tmp_path,), "Missing option"),
    ):
        done = run("report", *arguments)
        assert (done.status, done.out) == (2, "")
        assert words in done.err
        assert len(done.err.splitlines()) == 1
