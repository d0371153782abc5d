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
from storage_cases import ALL_KEYS, NUM_LAYERS, WEIGHTS_META, WIDTH, assert_refused, make_weights, refusal

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


def _header(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _digest(strings: dict[str, str]) -> str:
    """The recipe of docs/contracts.md, by hand."""
    text = json.dumps(dict(sorted(strings.items())))
    return hashlib.sha256(text.encode() + KEYS.tobytes() + WEIGHTS.tobytes()).hexdigest()


@pytest.mark.parametrize("count", [0, 1, 40, ALL_KEYS.size])
def test_saved_weights_come_back(tmp_path: Path, count: int) -> None:
    saved = make_weights(count)
    save_weights(tmp_path / "w", saved)
    loaded = load_weights(tmp_path / "w")
    assert loaded.meta == saved.meta
    assert (loaded.keys.dtype, loaded.weights.dtype) == (np.uint32, np.float32)
    np.testing.assert_array_equal(loaded.keys, saved.keys)
    np.testing.assert_array_equal(loaded.weights, saved.weights)


def test_saved_file_is_what_the_contract_says(tmp_path: Path) -> None:
    wide = make_weights(10)  # strided arrays are saved by value
    save_weights(tmp_path / "w", WeightsFile(wide.keys[::2], wide.weights[::2], WEIGHTS_META))
    with safe_open(tmp_path / "w", framework="numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"keys", "weights"}
        keys, weights = file.get_tensor("keys"), file.get_tensor("weights")
    assert (keys.dtype, weights.dtype) == (np.uint32, np.float32)
    np.testing.assert_array_equal(keys, wide.keys[::2])
    text = json.dumps(dict(sorted(STRINGS.items()))).encode()
    assert metadata == STRINGS | {"sha256": hashlib.sha256(text + keys.tobytes() + weights.tobytes()).hexdigest()}


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
    data = (tmp_path / "w").read_bytes()[:-4] + bytes(4)  # the last weight, now 0
    changes = [(), ((b'"sha256"', b'"sha2 6"'),), ((b'"sha256"', b'"sha2 6"'), (b'"nex-vllm 1.0"', b'"nex-fllm 1.0"'))]
    for replacements in changes:
        damaged = data
        for old, new in replacements:
            assert old in damaged
            damaged = damaged.replace(old, new)
        (tmp_path / "w").write_bytes(damaged)
        assert "was changed or damaged after it was written" in (refusal(load_weights, tmp_path / "w") or "was loaded")
    _write(tmp_path / "w", created_with="nex-vllm 9")
    assert "its sha256 differs or is gone" in (refusal(load_weights, tmp_path / "w") or "was loaded")


def test_existing_file_is_replaced_only_with_force_and_kept_when_saving_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(tmp_path / "w", make_weights(3))
    with pytest.raises(InputError, match=r"w already exists.*--force"):
        save_weights(tmp_path / "w", make_weights(4))

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(NexError, match="No space left"):
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
        arrays = np.array(keys, np.uint32), np.array(weights, np.float32)
        save_it = partial(save_weights, tmp_path / "saved", WeightsFile(*arrays, WEIGHTS_META))
        loaded = _write(tmp_path / "w", dict(zip(("keys", "weights"), arrays, strict=True)))
        assert_refused([(words, save_it, f"the weights for .*{words}"), (words, partial(load_weights, loaded), words)])
    assert not (tmp_path / "saved").exists()


def test_file_that_breaks_the_format_is_refused(tmp_path: Path) -> None:
    scalars = {"keys": np.array(3, np.uint32), "weights": np.array(1, np.float32)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tensors": {"keys": KEYS, "weights": WEIGHTS[:-1]}}, r"keys are uint32 \[5\] and weights float32 \[4\]"),
        ({"tensors": scalars}, r"keys are uint32 \[\]"),
        ({"tensors": {"keys": KEYS.astype(np.int64), "weights": WEIGHTS}}, r"keys are int64 \[5\]"),
        ({"tensors": {"keys": KEYS, "weights": WEIGHTS.astype(np.float64)}}, r"weights float64 \[5\]"),
        ({"tensors": {"keys": KEYS}}, r"holds the tensors \['keys'\], expected 'keys' and 'weights'"),
        ({"tensors": {"keys": KEYS, "weights": WEIGHTS, "more": WEIGHTS}}, "holds the tensors"),
        ({"format": None}, "is not a nex-vllm weights file: its format is None"),
        ({"format": "nex-cache/1"}, "is not a nex-vllm weights file"),
        ({"format": "nex-weights/2"}, "has format 'nex-weights/2', .*upgrade nex-vllm"),
        ({"top_k": None}, "missing required field `top_k`"),
        ({"top_k": "many"}, "`top_k`: expected `int`, got `str`"),
        ({"num_layers": "9" * 5000}, "`num_layers`: integer value out of range"),
        ({"num_layers": "1025"}, "`num_layers`: expected `int` <= 1024"),
        ({"rho": "nan"}, "`rho`: expected `float` > 0.0"),
        ({"rho": "1"}, "`rho`: expected `float` < 1.0"),
        ({"num_layers": "1", "intermediate_size": "4"}, "a key of layer 3, but the model has 1 layers"),
        ({"sha256": "0" * 64}, "was changed or damaged after it was written"),
    ]
    assert_refused(
        (changes, partial(load_weights, _write(tmp_path / "w", **changes)), f"^{tmp_path}/w.*{words}")
        for changes, words in cases
    )
    with pytest.raises(InputError, match=r"the weights for .*: `rho`: expected `float` < 1.0"):
        save_weights(tmp_path / "s", WeightsFile(KEYS, WEIGHTS, dataclasses.replace(WEIGHTS_META, rho=1.0)))


def test_hostile_header_every_truncation_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    def announcing(count: Any) -> dict[str, Any]:
        entry = {"shape": [count], "data_offsets": [0, 40]}
        return {"__metadata__": FOREIGN, "keys": {"dtype": "U32", **entry}, "weights": {"dtype": "F32", **entry}}

    headers: list[tuple[object, bytes]] = [
        (b"[]", b""),
        (b"[" * 100_000, b""),
        (b"\xff\xfe", b""),
        ({"__metadata__": FOREIGN | {"top_k": 7}}, b""),
        (b" " * (1 << 21), b""),
        (announcing(1 << 60), b""),
        (announcing(-1), b""),
        (announcing(10), b"\0" * 40),  # both tensors at the same place
        (announcing(5) | {"keys": None}, b""),
        # Types that numpy does not have.
        (announcing(10) | {"keys": {"dtype": "BF16", "shape": [20], "data_offsets": [40, 80]}}, b"\0" * 80),
        (announcing(10) | {"keys": {"dtype": "F8_E4M3", "shape": [40], "data_offsets": [40, 80]}}, b"\0" * 80),
    ]
    path, words = tmp_path / "w", "is not a sound safetensors file"
    assert_refused((header, partial(load_weights, _header(path, header, data)), words) for header, data in headers)
    save_weights(tmp_path / "whole", make_weights(3))
    data = (tmp_path / "whole").read_bytes()
    too_long = ((1 << 64) - 1).to_bytes(8, "little") + b"{}"
    for content in (*(data[:length] for length in range(len(data))), data + b"\0", too_long):
        path.write_bytes(content)
        assert words in (refusal(load_weights, path) or "was loaded")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)  # takes no place on disk
    others = [
        (tmp_path / "huge", "has 1099511627776 bytes, but a nex-vllm weights file has at most"),
        (tmp_path / "none", "cannot be read .No such file or directory.; give the path of a nex-vllm weights file"),
        (tmp_path, "is a directory, expected a nex-vllm weights file"),
        (Path("/dev/zero"), "is not a regular file"),
    ]
    assert_refused((other, partial(load_weights, other), words) for other, words in others)


FIT: dict[str, Any] = {
    "model_fingerprint": "f" * 32,
    "num_layers": NUM_LAYERS,
    "intermediate_size": WIDTH,
    "top_k": 20,
    "row_tokens": 8,
}


def test_weights_fit_the_model_they_were_learned_on_or_a_sibling_when_asked_and_the_caller_is_told() -> None:
    assert not check_fits(make_weights(), **FIT)
    assert check_fits(make_weights(), **{**FIT, "model_fingerprint": "e" * 32}, accept_other_model=True)
    assert not check_fits(make_weights(), **{**FIT, "row_tokens": None})
    shape: list[tuple[str, Any, str]] = [
        ("num_layers", 28, "w.safetensors was calibrated on 'tiny' with 4 layers, but what is served has 28 layers"),
        ("intermediate_size", 49, "with 48 units per layer, but what is served has 49"),
        ("top_k", 2000, "with top_k 20, but what is served has top_k 2000; set top_k to 20"),
        ("row_tokens", 32, "with row_tokens 8, but what is served has row_tokens 32"),
    ]
    other = ("model_fingerprint", "e" * 32, f"'{'f' * 32}', but .* '{'e' * 32}'; .*--nex-accept-other-model")
    for accept, cases in ((False, [*shape, other]), (True, shape)):
        options = {**FIT, "source": "w.safetensors", "accept_other_model": accept}
        assert_refused(
            (name, partial(check_fits, make_weights(), **{**options, name: value}), words)
            for name, value, words in cases
        )
