"""What result files say about themselves, and what is concluded from them."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module that benchmarks import under this name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("common")


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module of targets."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("targets")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a repository with one committed file."""
    root = tmp_path / "checkout"
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "kernel.py").write_text("fast = 1\n")
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def test_results_of_uncommitted_code_are_not_kept_in_the_repository(
    common: Any, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser, inside = argparse.ArgumentParser(), checkout / "benchmarks" / "results" / "speed.json"
    common.check_result_path(parser, inside, checkout)
    inside.write_text("{}")
    common.check_result_path(parser, inside, checkout)  # an earlier benchmark's result is no change to what is measured
    assert not common.commit(checkout).endswith("+")
    (checkout / "kernel.py").write_text("fast = 2\n")
    assert common.commit(checkout).endswith("+")
    common.check_result_path(parser, None, checkout)
    common.check_result_path(parser, tmp_path / "speed.json", checkout)
    with pytest.raises(SystemExit, match="2"):
        common.check_result_path(parser, inside, checkout)
    assert "kernel.py" in capsys.readouterr().err


def test_a_result_says_how_it_was_made(common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["somewhere/speed.py", "--json", "/home/somebody/speed.json"])
    common.write_result(tmp_path / "speed.json", "speed", {"figure": 1})
    result = json.loads((tmp_path / "speed.json").read_text())
    assert set(result) == {"benchmark", "commit", "command", "date", "machine", "versions", "figure"}
    assert result["command"] == "python benchmarks/speed.py --json speed.json", "no path of this machine"


def test_the_interval_holds_the_median_and_narrows_with_rounds(common: Any) -> None:
    few, many = common.spread([0.9, 1.0, 1.1]), common.spread([0.9, 1.0, 1.1] * 30)
    assert few["interval"][0] <= few["median"] <= few["interval"][1]
    assert many["interval"][1] - many["interval"][0] < few["interval"][1] - few["interval"][0]
    assert common.spread([2.0])["interval"] == (2.0, 2.0)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.99] * 7, "aim reached"),
        ([0.93, 0.94, 0.95, 0.94, 0.93], "must reached"),
        ([0.80, 0.99, 0.81, 1.01, 1.00], "not shown"),  # a median of 0.99 that chance explains
    ],
)
def test_a_target_is_reached_when_chance_does_not_explain_it(
    common: Any, targets: Any, tmp_path: Path, ratios: list[float], verdict: str
) -> None:
    level = {"sequences": 24, "ratio": {"selecting": common.spread(ratios)}}
    (tmp_path / "overhead-cpu-countdown-decode.json").write_text(json.dumps({"levels": [level]}))
    target = next(each for each in targets.TARGETS if (each.must, each.aim) == (0.90, 0.97))
    assert target.verdict(target.read(tmp_path)) == verdict
    assert target.verdict([]) == "not yet measured"
