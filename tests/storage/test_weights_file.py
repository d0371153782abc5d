"""A weights file comes back as it was saved, or is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from storage_cases import ALL_KEYS, NUM_LAYERS, WEIGHTS_META, WIDTH, assert_refused, full_disk, make_weights

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import WeightsFile, check_fits, load_weights, save_weights

STRINGS = {"format": "nex-weights/1", **{name: str(v) for name, v in dataclasses.asdict(WEIGHTS_META).items()}}
FOREIGN = STRINGS | {"created_with": "another program"}
KEYS, WEIGHTS = make_weights(5).keys, make_weights(5).weights


def _write(path: Path, tensors: dict[str, Any] | None = None, **changes: str | None) -> Path:
    """A file as another program would write it to the contract: no sha256."""
    strings = {name: value for name, value in (FOREIGN | changes).items() if value is not None}
    path.write_bytes(save({"keys": KEYS, "weights": WEIGHTS} if tensors is None else tensors, strings))
    return path


def _load_bytes(path: Path, content: bytes) -> WeightsFile:
    path.write_bytes(content)
    return load_weights(path)


def _digest(strings: dict[str, str], keys: Any = KEYS, weights: Any = WEIGHTS) -> str:
    """The recipe of docs/contracts.md, by hand."""
    text = json.dumps(dict(sorted(strings.items())))
    return hashlib.sha256(text.encode() + keys.tobytes() + weights.tobytes()).hexdigest()


@pytest.mark.parametrize("count", [0, 1, 40, ALL_KEYS.size])
def test_saved_file_is_what_the_contract_says_and_comes_back(tmp_path: Path, count: int) -> None:
    whole = make_weights(count)
    save_weights(tmp_path / "w", WeightsFile(whole.keys[::2], whole.weights[::2], WEIGHTS_META))  # saved by value
    with safe_open(tmp_path / "w", framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {"keys": np.uint32, "weights": np.float32}
    assert metadata == STRINGS | {"sha256": _digest(STRINGS, whole.keys[::2], whole.weights[::2])}
    loaded = load_weights(tmp_path / "w")
    assert loaded.meta == WEIGHTS_META
    for found in (tensors, {"keys": loaded.keys, "weights": loaded.weights}):
        np.testing.assert_array_equal(found["keys"], whole.keys[::2])
        np.testing.assert_array_equal(found["weights"], whole.weights[::2])


def test_file_of_another_program_is_read_and_entries_nobody_knows_are_ignored(tmp_path: Path) -> None:
    loaded = load_weights(_write(tmp_path / "w", rho="0.9"))
    assert loaded.meta == dataclasses.replace(WEIGHTS_META, rho=0.9, created_with="another program")
    extra = STRINGS | {"note": "by hand"}
    for changes in (
        {"note": "by hand"},
        extra | {"sha256": _digest(extra)},  # a later version, whose digest covers what it knows
        extra | {"sha256": _digest(STRINGS)},  # ours, and another program added an entry
    ):
        np.testing.assert_array_equal(load_weights(_write(tmp_path / "w", **changes)).weights, WEIGHTS)


def test_damage_is_found_where_it_hits_the_name_of_the_digest_too(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", make_weights(40))
    damaged = (tmp_path / "w").read_bytes()[:-4] + bytes(4)  # the last weight, now 0
    renamed = damaged.replace(b'"sha256"', b'"sha2 6"')
    disguised = renamed.replace(b'"nex-vllm 1.0"', b'"nex-fllm 1.0"')
    assert len({damaged, renamed, disguised}) == 3
    words = "was changed or damaged after it was written .its sha256 differs or is gone"
    assert_refused((c, partial(_load_bytes, tmp_path / "w", c), words) for c in (damaged, renamed, disguised))


def test_existing_file_is_replaced_only_with_force_and_kept_when_saving_fails(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", make_weights(3))
    assert_refused([("no force", partial(save_weights, tmp_path / "w", make_weights(4)), "w already exists.*--force")])
    with full_disk(), pytest.raises(NexError, match="No space left"):
        save_weights(tmp_path / "w", make_weights(4), force=True)
    assert load_weights(tmp_path / "w").keys.size == 3
    save_weights(tmp_path / "w", make_weights(4), force=True)
    assert load_weights(tmp_path / "w").keys.size == 4
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_bad_content_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    cases: list[tuple[list[int], list[Any], str]] = [
        ([3, 2], [0, 0], "has keys that are not strictly ascending"),
        ([NUM_LAYERS << 16], [0], f"a key of layer {NUM_LAYERS}, but the model has {NUM_LAYERS} layers"),
        ([WIDTH, 1 << 16], [0, 0], f"a key of unit {WIDTH}, but a layer has {WIDTH} units"),
        ([1, 2], [0, np.nan], "a weight nan, expected -1 to 1"),
        ([1, 2], [np.nextafter(np.float32(-1), np.float32(-2)), 0], "a weight -1.0"),
    ]
    for keys, weights, words in cases:
        tensors = {"keys": np.array(keys, np.uint32), "weights": np.array(weights, np.float32)}
        save_it = partial(save_weights, tmp_path / "saved", WeightsFile(**tensors, meta=WEIGHTS_META))
        load_it = partial(load_weights, _write(tmp_path / "w", tensors))
        assert_refused([("save", save_it, f"the weights for .*{words}"), ("load", load_it, words)])
    bad_rho = WeightsFile(KEYS, WEIGHTS, dataclasses.replace(WEIGHTS_META, rho=1.0))
    assert_refused([("rho", partial(save_weights, tmp_path / "saved", bad_rho), "the weights for .*`rho`: expected")])
    assert not (tmp_path / "saved").exists()


def test_file_that_breaks_the_format_is_refused(tmp_path: Path) -> None:
    both = {"keys": KEYS, "weights": WEIGHTS}
    scalars = {"keys": np.array(3, np.uint32), "weights": np.array(1, np.float32)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tensors": both | {"weights": WEIGHTS[:-1]}}, r"keys are uint32 \[5\] and weights float32 \[4\]"),
        ({"tensors": scalars}, r"keys are uint32 \[\]"),
        ({"tensors": both | {"keys": KEYS.astype(np.int64)}}, r"keys are int64 \[5\]"),
        ({"tensors": both | {"weights": WEIGHTS.astype(np.float64)}}, r"weights float64 \[5\]"),
        ({"tensors": {"keys": KEYS}}, r"holds the tensors \['keys'\], expected 'keys' and 'weights'"),
        ({"tensors": both | {"more": WEIGHTS}}, "holds the tensors"),
        ({"format": None}, "is not a nex-vllm weights file: its format is None"),
        ({"format": "nex-cache/1"}, "is not a nex-vllm weights file"),
        ({"format": "nex-weights/2"}, "has format 'nex-weights/2', .*upgrade nex-vllm"),
        ({"top_k": None}, "missing required field `top_k`"),
        ({"top_k": "many"}, "`top_k`: expected `int`, got `str`"),
        ({"num_layers": "9" * 5000}, "`num_layers`: integer value out of range"),
        ({"num_layers": "1025"}, "`num_layers`: expected `int` <= 1024"),
        ({"rho": "nan"}, "`rho`: expected `float` > 0.0"),
        ({"num_layers": "1", "intermediate_size": "4"}, "a key of layer 3, but the model has 1 layers"),
        ({"sha256": "0" * 64}, "was changed or damaged after it was written"),
        ({"created_with": "nex-vllm 9"}, "its sha256 differs or is gone"),
    ]
    assert_refused(
        (changes, partial(load_weights, _write(tmp_path / "w", **changes)), f"^{tmp_path}/w.*{words}")
        for changes, words in cases
    )


def test_hostile_header_every_truncation_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    def announcing(count: Any, **changes: Any) -> dict[str, Any]:
        entry = {"shape": [count], "data_offsets": [0, 40]}
        return {
            "__metadata__": FOREIGN,
            "keys": {"dtype": "U32", **entry},
            "weights": {"dtype": "F32", **entry},
        } | changes

    def of_type(name: str, count: int) -> dict[str, Any]:
        return announcing(10, keys={"dtype": name, "shape": [count], "data_offsets": [40, 80]})

    headers: list[tuple[object, int]] = [
        (b"[]", 0),
        (b"[" * 100_000, 0),
        (b"\xff\xfe", 0),
        ({"__metadata__": FOREIGN | {"top_k": 7}}, 0),
        (b" " * (1 << 21), 0),
        (announcing(1 << 60), 0),
        (announcing(-1), 0),
        (announcing(10), 40),  # both tensors at the same place
        (announcing(5, keys=None), 0),
        (of_type("BF16", 20), 80),  # which numpy does not have
        (of_type("F8_E4M3", 40), 80),
    ]
    texts = [(header if isinstance(header, bytes) else json.dumps(header).encode(), size) for header, size in headers]
    whole = save({"keys": KEYS, "weights": WEIGHTS}, FOREIGN)
    contents = [
        *(len(text).to_bytes(8, "little") + text + bytes(size) for text, size in texts),
        *(whole[:length] for length in range(len(whole))),
        whole + b"\0",
        ((1 << 64) - 1).to_bytes(8, "little") + b"{}",
    ]
    words = "is not a sound safetensors file"
    assert_refused((content, partial(_load_bytes, tmp_path / "w", content), words) for content in contents)
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)  # takes no place on disk
    others = [
        (tmp_path / "huge", "has 1099511627776 bytes, but a nex-vllm weights file has at most"),
        (tmp_path / "none", "cannot be read .No such file or directory.; give the path of a nex-vllm weights file"),
        (tmp_path, "is a directory, expected a nex-vllm weights file"),
        (Path("/dev/zero"), "is not a regular file"),
    ]
    assert_refused((other, partial(load_weights, other), words) for other, words in others)


def test_weights_fit_the_model_they_were_learned_on_or_a_sibling_when_asked_and_the_caller_is_told() -> None:
    fits = partial(check_fits, make_weights(), source="w.safetensors")
    served: dict[str, Any] = {
        name: getattr(WEIGHTS_META, name)
        for name in ("model_fingerprint", "num_layers", "intermediate_size", "top_k", "row_tokens")
    }
    assert not fits(**served)
    assert fits(**served | {"model_fingerprint": "e" * 32}, accept_other_model=True)
    assert not fits(**served | {"row_tokens": None})
    shape: list[tuple[str, Any, str]] = [
        ("num_layers", 28, "w.safetensors was calibrated on 'tiny' with 4 layers, but what is served has 28 layers"),
        ("intermediate_size", 49, "with 48 units per layer, but what is served has 49"),
        ("top_k", 2000, "with top_k 20, but what is served has top_k 2000; set top_k to 20"),
        ("row_tokens", 32, "with row_tokens 8, but what is served has row_tokens 32"),
    ]
    other = ("model_fingerprint", "e" * 32, f"'{'f' * 32}', but .* '{'e' * 32}'; .*--nex-accept-other-model")
    for accept, cases in ((False, [*shape, other]), (True, shape)):
        assert_refused(
            (name, partial(fits, **served | {name: value}, accept_other_model=accept), words)
            for name, value, words in cases
        )
