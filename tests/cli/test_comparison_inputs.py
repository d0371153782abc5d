"""What `compare` is given, before any engine: scores have one source, which is what it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nex_vllm.algorithm import NeuronWeights, WeightAccumulator
from nex_vllm.cli.comparison_inputs import Scoring, choose_grading, read_scoring
from nex_vllm.cli.model import ModelFacts
from nex_vllm.errors import InputError
from nex_vllm.evaluation.problems import load_problems
from nex_vllm.storage import CacheReader, WeightsFile, WeightsMeta, save_weights
from tests.cli.conftest import write_lines
from tests.cli.recorded import NUM_LAYERS, ROW_TOKENS, TOP_K, WIDTH, recorded_rows, write_cache

FINGERPRINT = "0" * 32


def write_weights(path: Path, weights: NeuronWeights) -> Path:
    meta = WeightsMeta(
        *("a model", FINGERPRINT, NUM_LAYERS, WIDTH, TOP_K, ROW_TOKENS),
        rho=0.95,
        min_run=2,
        credit="introduced",
        num_responses=6,
        num_cycles=34,
        created_with="a test",
    )
    save_weights(path, WeightsFile(weights.keys, weights.weights, meta))
    return path


def scoring(weights: Path, calibration: Path) -> Scoring:
    model = ModelFacts("a model", weights.parent, FINGERPRINT, NUM_LAYERS, WIDTH)
    return read_scoring(model, weights, calibration, top_k=None, row_tokens=None, accept_other_model=False)


def test_weights_beside_a_calibration_are_those_that_it_gives(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(f"c{n}", 50 + n) for n in range(6)])
    accumulator = WeightAccumulator()
    for rows in CacheReader(cache).rows():
        accumulator.add(rows)
    learned = accumulator.weights()
    found = scoring(write_weights(tmp_path / "own", learned), cache)
    assert found.weights is not None
    assert found.evidence is not None
    turned = NeuronWeights(learned.keys, learned.weights * np.where(np.arange(len(learned.keys)) == 3, -1, 1))
    fewer = NeuronWeights(learned.keys[1:], learned.weights[1:])
    for name, other in (("turned", turned), ("fewer", fewer)):
        path = write_weights(tmp_path / name, NeuronWeights(other.keys, other.weights.astype(np.float32)))
        with pytest.raises(InputError) as refusal:
            scoring(path, cache)
        assert f"the weights {path} were not learned from the calibration cache {cache} as it is now" in str(
            refusal.value
        )
        assert "leave out --weights or --calibration" in str(refusal.value)


def test_a_right_answer_that_the_grader_cannot_read_is_found_before_anything_is_sampled(tmp_path: Path) -> None:
    lines = [{"id": "a", "prompt": "1 + 1", "answer": "2"}, {"id": "b", "prompt": "many", "answer": "25 apples"}]
    path = write_lines(tmp_path / "problems.jsonl", lines)
    with pytest.raises(InputError, match="problem 'b' is '25 apples', which --grader numeric cannot read"):
        choose_grading("numeric", None, load_problems(str(path)), str(path))
    assert choose_grading("exact", "boxed", load_problems(str(path)), str(path)).grader == "exact"
