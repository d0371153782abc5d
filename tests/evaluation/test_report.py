"""The report says what was recorded, as the method judges it, and nothing that a model wrote gets out of its place."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nex_vllm.algorithm import WeightAccumulator, judge_response, weighted_masses
from nex_vllm.errors import InputError
from nex_vllm.evaluation.report.figures import RowSample, count_in_bins, describe_weights
from nex_vllm.evaluation.report.pictures import choose_pictures, draw_picture
from nex_vllm.evaluation.report.responses import ShownResponses, encode_json
from nex_vllm.storage import CacheReader, WeightsFile, WeightsMeta, save_weights
from tests.evaluation.pages import Parsed, html_of, page_of, parse, report
from tests.evaluation.recorded import HOSTILE, META, write_cache, write_comparison_directory

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with one response for each hostile text."""
    return write_cache(tmp_path_factory.mktemp("recorded") / "cache", HOSTILE, num_rows=24)


@pytest.fixture(scope="module")
def pages(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a page of each kind of source, written once."""
    folder = tmp_path_factory.mktemp("pages")
    comparison = write_comparison_directory(folder / "comparison")
    sources = {"cache": cache, "weights": write_weights(folder / "w.safetensors"), "comparison": comparison}
    return {kind: report(path, folder / f"{kind}.html")[0] for kind, path in sources.items()}


def write_weights(path: Path, **changes: Any) -> Path:
    fields = {name: getattr(META, name) for name in META.__dataclass_fields__}
    meta = WeightsMeta(
        **{**fields, **changes},
        rho=0.95,
        min_run=2,
        credit="introduced",
        num_responses=12,
        num_cycles=34,
        created_with="a test",
    )
    keys = np.array([5, 7, 1 << 16 | 3, 3 << 16 | 9, 3 << 16 | 10], dtype=np.uint32)
    save_weights(path, WeightsFile(keys, np.array([1.0, -0.5, 0.25, 0.0, -1.0], np.float32), meta))
    return path


def test_every_response_is_shown_as_the_method_judges_it(cache: Path, pages: dict[str, Path]) -> None:
    reader, accumulator = CacheReader(cache), WeightAccumulator()
    for rows in reader.rows():
        accumulator.add(rows)
    weights = accumulator.weights()
    shown = parse(pages["cache"]).responses
    assert len(shown) == len(HOSTILE)
    for found, rows, response in zip(shown, reader.rows(), reader.responses(), strict=True):
        judged = judge_response(rows)
        masses = weighted_masses(rows.keys, rows.masses, weights)
        assert found["id"] == response.id
        assert "".join(found["texts"]) == response.text
        assert found["score"] == pytest.approx(masses.score, rel=1e-12)
        assert 0.0 < found["score"] < 1.0
        assert found["bad"] == pytest.approx(masses.bad, rel=1e-9, abs=1e-15)
        assert found["phases"] == "".join("XE"[explore] for explore in judged.explore.tolist())
        np.testing.assert_array_equal(np.array(found["new"]) / found["lengths"], judged.slopes)
        assert [each[:3] for each in found["judged"]] == [[c.explore, c.exploit, c.stop] for c in judged.cycles]
        for each, credit in zip(found["judged"], judged.credits, strict=True):
            expected = [credit.reuse_share, credit.progress, credit.consolidation, credit.strength]
            assert each[3:7] == pytest.approx(expected, rel=1e-4)
            assert each[7] == ("gated" if not credit.counts else "effective" if credit.effective else "redundant")
    assert any(found["judged"] for found in shown)


def test_the_figures_have_the_numbers_of_the_whole_cache(cache: Path, pages: dict[str, Path]) -> None:
    accumulator = WeightAccumulator()
    for rows in CacheReader(cache).rows():
        accumulator.add(rows)
    summary, text = accumulator.summary(), parse(pages["cache"]).text
    assert f"{summary.explore_entropy:.4f}" in text
    assert f"{summary.exploit_entropy:.4f}" in text
    weights = accumulator.weights().weights
    assert f"{(weights > 0).sum()} effective neurons" in text
    assert f"{(weights < 0).sum()} redundant ones" in text
    assert "0.2765" in text  # of the paper's table 5
    assert "split_half_agreement" in text


@pytest.mark.parametrize("kind", ["cache", "weights", "comparison"])
def test_a_page_has_no_element_attribute_or_address_of_a_model_s_making(pages: dict[str, Path], kind: str) -> None:
    found = parse(pages[kind])
    plain = {"html", "head", "meta", "title", "link", "style", "body", "header", "main", "footer", "section", "h1"}
    plain |= {"h2", "h3", "dl", "div", "dt", "dd", "bdi", "p", "span", "noscript", "form", "label", "input", "select"}
    plain |= {"option", "button", "output", "article", "details", "summary", "pre", "table", "caption", "thead"}
    plain |= {"tbody", "tr", "th", "td", "figure", "figcaption", "script", "ul", "li", "wbr"}
    drawn = {"svg", "text", "line", "rect", "circle", "g"}
    assert {tag for tag, _ in found.elements} <= plain | drawn
    attributes = {name for _, given in found.elements for name in given}
    assert not [name for name in attributes if name.startswith("on") or name in {"style", "src", "srcset", "action"}]
    assert [given["href"] for _, given in found.elements if "href" in given] == ["data:,"]
    scripts = [given for tag, given in found.elements if tag == "script"]
    runs = [given for given in scripts if "type" not in given]
    assert len(runs) == (kind != "weights")
    assert len(scripts) - len(runs) == (len(found.responses) + 1 if kind != "weights" else 0)


def test_the_policy_allows_the_page_s_own_style_and_script_by_digest_and_nothing_else(pages: dict[str, Path]) -> None:
    found = parse(pages["cache"])
    (policy,) = (
        given["content"] for _, given in found.elements if given.get("http-equiv") == "Content-Security-Policy"
    )
    allowed = dict(part.split(" ", 1) for part in str(policy).split("; "))

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    (style,) = (text for given, text in found.raw if given["tag"] == "style")
    (script,) = (text for given, text in found.raw if given["tag"] == "script" and "type" not in given)
    assert allowed == {
        "default-src": "'none'",
        "style-src": digest(style),
        "script-src": digest(script),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    addresses = set(re.findall(r"\w+://[^\s\"'<]+", script + style))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nobody visits
    assert "innerHTML" not in script
    assert "</" not in script


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_element_holds_what_would_end_it(text: str) -> None:
    encoded = encode_json({"text": text})
    assert not set("<>&\u2028\u2029\x00") & set(encoded)
    assert json.loads(encoded) == {"text": text}


def test_nan_never_reaches_the_page() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_json([float("nan")])


def test_a_page_holds_whole_responses_up_to_a_number_and_a_size(cache: Path) -> None:
    page = Parsed(html_of(cache, responses=3))
    assert [each["id"] for each in page.responses] == [f"{n}: {HOSTILE[n][:40]}" for n in range(3)]
    assert f"The first 3 of {len(HOSTILE)} responses are here" in page.text
    assert "In 3 of them the places where rows begin are estimates" in page.text

    shown = ShownResponses(10, most_bytes=250)
    for number in range(5):
        shown.add({"id": str(number)}, {"texts": ["é" * 30], "exact": True})
    assert (len(shown.encoded), shown.num_seen) == (2, 5)
    assert sum(len(each.encode()) for each in shown.encoded) == shown.num_bytes <= 250


def test_without_responses_there_is_no_script(cache: Path) -> None:
    assert not [given for tag, given in Parsed(html_of(cache, responses=0)).elements if tag == "script"]


def test_given_weights_score_a_cache(cache: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors")
    found = Parsed(html_of(cache, weights=weights))
    file = WeightAccumulator().weights()
    assert "by the weights of" in found.text
    assert len(file.keys) == 0  # so that the scores below are not of learned weights
    for each, rows in zip(found.responses, CacheReader(cache).rows(), strict=True):
        b = dict.fromkeys((5, 7, 65539, 196618), 0.0)
        for key, mass in zip(rows.keys.tolist(), rows.masses.tolist(), strict=True):
            if key in b:
                b[key] += mass
        good, bad = b[5] + 0.25 * b[65539], 0.5 * b[7] + b[196618]
        assert each["score"] == (pytest.approx(good / (good + bad)) if good + bad else None)


def test_a_weights_file_is_counted_by_layer(pages: dict[str, Path]) -> None:
    found = parse(pages["weights"])
    assert "2 effective neurons (weight above 0) and 2 redundant ones (below 0) of 4096." in found.text
    assert "layer 0: 1 effective, 1 redundant" in found.text
    assert "layer 3: 0 effective, 1 redundant" in found.text
    wide = describe_weights(np.array([0, 69 << 16], np.uint32), np.array([1, -1], np.float32), 70, 10)
    assert (len(wide.layers), wide.layers[0].name, wide.layers[-1].name) == (35, "0-1", "68-69")
    assert (wide.layers[0].effective, wide.layers[-1].redundant) == (1, 1)


def test_a_comparison_shows_its_selectors_and_candidates(pages: dict[str, Path]) -> None:
    found = parse(pages["comparison"])
    assert re.search(r"oracle\s*90\.0 %.*nex\s*50\.0 %\s*\+10\.0\s*-5\.0 to \+25\.0", found.text, re.DOTALL)
    assert "Here the order holds." in found.text
    assert "resampled as well as problems, the interval of nex is -12.0 to +30.0 points" in found.text
    assert "<b>agreement</b> is near chance" in found.text
    shown = found.responses
    assert [each["id"] for each in shown[:5]] == [
        f"problem <{p}>-{k}" for p, k in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    ]
    assert [each["score"] for each in shown[:2] if each["score"] is None] == [None]
    assert sum("nex" in each["chosen"] for each in shown) == 6
    assert (shown[-1]["phases"], "".join(shown[-1]["texts"])[:11]) == ("", "thinking of")  # its rows are not recorded
    assert set(shown[0]["phases"]) == {"E", "X"}


def test_a_comparison_is_shown_by_whole_problems(tmp_path: Path) -> None:
    directory = write_comparison_directory(tmp_path / "comparison")
    found = Parsed(html_of(directory, responses=10))
    assert len(found.responses) == 8
    assert "The first 8 of 24 responses are here" in found.text


@pytest.mark.parametrize("kind", ["cache", "weights", "comparison"])
def test_the_pictures_are_beside_the_page_and_not_blank(pages: dict[str, Path], kind: str) -> None:
    from matplotlib.image import imread

    names = {"novelty", "scores", "phase-entropy", "entropy-novelty"}
    expected = {
        "cache": names | {"weights"},
        "weights": {"weights"},
        "comparison": names | {"selectors", "best-random-worst"},
    }
    page = pages[kind]
    found = {path.stem.removeprefix(f"{kind}-"): path for path in page.parent.glob(f"{kind}-*.png")}
    assert set(found) == expected[kind]
    for path in found.values():
        pixels = imread(io.BytesIO(path.read_bytes()))
        assert pixels.shape[1] == 7 * 150
        assert pixels.std() > 0.02


def test_names_in_a_picture_are_no_mathematics(tmp_path: Path) -> None:
    directory = write_comparison_directory(tmp_path / "comparison")
    outcome = directory / "comparison.json"
    fields = json.loads(outcome.read_text())
    fields["selectors"][r"$\frac{1}{0$"] = fields["selectors"]["nex"]
    outcome.write_text(json.dumps(fields))
    draw = choose_pictures(page_of(directory))["selectors"]
    assert draw_picture(draw).startswith(b"\x89PNG")


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "nowhere", "does not exist; give the directory"),
        (tmp_path / "empty", r"has neither meta\.json nor candidates\.parquet"),
        (Path(__file__), "is not a sound safetensors file"),
    ):
        with pytest.raises(InputError, match=words):
            report(path, out)
    assert not out.exists()


def test_outputs_that_would_harm_are_refused_before_any_work(cache: Path, tmp_path: Path) -> None:
    weights, out = write_weights(tmp_path / "w.safetensors"), tmp_path / "r.html"
    with pytest.raises(InputError, match="is inside"):
        report(cache, cache / "r.html")
    with pytest.raises(InputError, match="is the file"):
        report(weights, weights, force=True)
    (tmp_path / "r-weights.png").write_text("mine")
    with pytest.raises(InputError, match=r"r-weights\.png already exists"):
        report(weights, out)
    assert not out.exists()
    assert report(weights, out, force=True) == [out, tmp_path / "r-weights.png"]
    assert (tmp_path / "r-weights.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"r\.html already exists"):
        report(weights, out)


def test_options_that_do_not_fit_are_refused(cache: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors")
    other = write_weights(tmp_path / "o.safetensors", top_k=25)
    sibling = write_weights(tmp_path / "s.safetensors", model_fingerprint="e" * 32)
    out = tmp_path / "r.html"
    for path, options, words in (
        (weights, {"weights": weights}, "--weights has no effect"),
        (weights, {"tokenizer": tmp_path}, "--tokenizer has no effect"),
        (cache, {"weights": other}, "top_k 25.*; calibrate again$"),
        (cache, {"weights": sibling}, "or give --accept-other-model if it is a fine-tuned"),
        (cache, {"accept_other_model": True}, "--accept-other-model has no effect without --weights"),
        (cache, {"tokenizer": tmp_path}, "has no tokenizer that can be read"),
    ):
        with pytest.raises(InputError, match=words):
            report(path, out, **options)
    assert report(cache, out, weights=sibling, accept_other_model=True)[0] == out


def test_a_sample_of_rows_is_a_fair_one() -> None:
    sample = RowSample(200)
    for start in range(0, 20_000, 100):
        sample.add(np.arange(start, start + 100) / 20_000, [1.0] * 100, [True] * 100)
    sample.add([float("nan")], [1.0], [False])
    kept = np.array([point[0] for point in sample.scatter().points])
    assert (len(kept), sample.num_rows) == (200, 20_000)
    assert abs(kept.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 200)


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [0.0, 0.0], [0.1, 0.1 + 1e-17], [-3.0, 4.0, float("nan")]])
def test_a_histogram_counts_every_finite_value(values: list[float]) -> None:
    bins = count_in_bins(values)
    assert bins is not None
    assert sum(bins.counts) == np.isfinite(values).sum()
    assert bins.low < bins.high


def test_an_installed_package_has_the_page_s_files() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["nex_vllm"]
    folder = ROOT / "nex_vllm" / "evaluation" / "report"
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"]
    assert {path.suffix for path in files} == {".html", ".css", ".js"}
    for path in files:
        name = path.relative_to(ROOT / "nex_vllm").as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
