"""The committed model folder: small, safe to load, consistent with its config, with a tokenizer that is exact."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Problem, is_correct
from safetensors import safe_open
from study_commands import model_settings, sampling_flags
from study_settings import ROW_TOKENS, TOP_K
from tokenizer import END, build_tokenizer
from tokenizers.decoders import DecodeStream
from traces import problem_stream, worked_solution
from train import batches, learning_rate, model_config
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from nex_vllm.storage import model_fingerprint

COUNTDOWN = Path(problems.__file__).parent
MODEL = COUNTDOWN / "model"
ROOT = COUNTDOWN.parents[1]
CHOICE = json.loads((COUNTDOWN / "results" / "settings.json").read_text())
PROBLEM = Problem((3, 7, 8, 12), 52)
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)


def solutions(count: int) -> list[str]:
    rng = random.Random(3)
    return [worked_solution(problem, rng) for problem in islice(problem_stream(3, "train"), count)]


def test_folder_holds_at_most_16_megabytes_and_weights_as_safetensors_only() -> None:
    files = [file for file in MODEL.iterdir() if file.is_file()]
    assert {file.name for file in files} == {
        *("README.md", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    assert sum(file.stat().st_size for file in files) <= 16 * 10**6


def test_weights_have_exactly_the_tensors_that_the_config_asks_for_and_are_finite() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] == 512
    wanted = Qwen3ForCausalLM(model_config(TOKENIZER)).state_dict()
    wanted.pop("lm_head.weight")  # tied to the embedding, hence not stored
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(wanted)
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float32
            assert tensor.shape == wanted[name].shape
            assert tensor.isfinite().all()
    assert 2e6 < sum(p.numel() for p in wanted.values()) < 4e6
    assert config["vocab_size"] == len(TOKENIZER)


def test_settings_are_those_that_the_study_chose_for_this_model() -> None:
    assert CHOICE["trial"] is None
    assert CHOICE["model_fingerprint"] == model_fingerprint(MODEL)
    assert {(each["top_k"], each["row_tokens"]) for each in CHOICE["grid"]} == set(product(TOP_K, ROW_TOKENS))
    assert {name: model_settings()[name] for name in CHOICE["chosen"]} == CHOICE["chosen"]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "study.md"], ids=lambda page: page.name)
def test_pasted_commands_calibrate_with_the_chosen_settings(page: Path) -> None:
    lines = [line.strip() for line in page.read_text().replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if re.match(r"nex-vllm calibrate (examples/countdown/)?model ", line)]
    assert commands
    for command in commands:
        flags = {name.replace("-", "_"): int(n) for name, n in re.findall(r"--(top-k|row-tokens) (\d+)", command)}
        assert flags == CHOICE["chosen"]


def test_pasted_commands_of_the_study_sample_and_sweep_as_it_did() -> None:
    text = (ROOT / "docs" / "study.md").read_text()
    assert f'SAMPLING="{" ".join(sampling_flags())}"' in text
    over = [f"--over {name}={','.join(map(str, n))}" for name, n in (("top_k", TOP_K), ("row_tokens", ROW_TOKENS))]
    assert f"--row-tokens {CHOICE['chosen']['row_tokens']} {' '.join(over)}" in text


def test_model_card_names_the_chosen_settings() -> None:
    card = " ".join((MODEL / "README.md").read_text().split())
    told = re.search(r"`\.\./settings\.json` holds .*?rows of (\d+) tokens, top-K (\d+) ", card)
    assert told is not None
    assert {"row_tokens": int(told[1]), "top_k": int(told[2])} == CHOICE["chosen"]


def test_committed_tokenizer_is_the_one_that_the_code_builds() -> None:
    assert json.loads((MODEL / "tokenizer.json").read_text()) == json.loads(
        build_tokenizer(512).backend_tokenizer.to_str()
    )
    assert TOKENIZER.bos_token == TOKENIZER.eos_token == END
    assert TOKENIZER.pad_token_id not in (None, TOKENIZER.eos_token_id)


def test_generated_text_comes_back_exactly_whole_and_token_by_token() -> None:
    for text in solutions(200):
        ids = TOKENIZER.encode(PROBLEM.prompt + text)
        assert TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == PROBLEM.prompt + text
        stream = DecodeStream(skip_special_tokens=True)
        pieces = [stream.step(TOKENIZER.backend_tokenizer, token) for token in ids]
        assert "".join(piece or "" for piece in pieces) == PROBLEM.prompt + text


def test_prompt_and_response_tokenize_apart_as_they_do_together() -> None:
    for text in solutions(50):
        apart = TOKENIZER.encode(PROBLEM.prompt) + TOKENIZER.encode(text)
        assert apart == TOKENIZER.encode(PROBLEM.prompt + text)


@given(st.text(max_size=200))
def test_foreign_text_becomes_unknown_tokens_and_never_an_error(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert all(0 <= token < len(TOKENIZER) for token in ids)
    assert isinstance(TOKENIZER.decode(ids), str)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "You are terse."}]])
def test_chat_message_becomes_exactly_the_prompt_of_training(system: list[dict[str, str]]) -> None:
    messages = [*system, {"role": "user", "content": PROBLEM.prompt}]
    text = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == PROBLEM.prompt
    ids, _ = next(batches(1, 4096, TOKENIZER))
    trained_prompt = TOKENIZER.decode(ids[0]).split("Plan")[0]
    assert ids[0, : len(TOKENIZER.encode(trained_prompt))].tolist() == TOKENIZER.encode(trained_prompt)
    assert trained_prompt.startswith("Make ")
    assert trained_prompt.endswith(".")


def test_training_batches_put_loss_on_every_response_token_and_nowhere_else() -> None:
    for ids, labels in islice(batches(1, 4096, TOKENIZER), 5):
        assert ids.numel() <= 4096
        for row, targets in zip(ids.tolist(), labels.tolist(), strict=True):
            labelled = [i for i, target in enumerate(targets) if target != -100]
            text = TOKENIZER.decode(row[: labelled[0]])
            assert text.endswith(".")
            assert row[labelled[-1]] == TOKENIZER.eos_token_id
            assert labelled == list(range(labelled[0], labelled[-1] + 1))
            assert [row[i] for i in labelled] == [targets[i] for i in labelled]
            assert set(row[labelled[-1] + 1 :]) <= {TOKENIZER.pad_token_id}


def test_learning_rate_is_independent_of_the_run_length_until_the_descent() -> None:
    assert [learning_rate(s, 1000, 1.0) for s in range(700)] == [learning_rate(s, 2000, 1.0) for s in range(700)]
    assert learning_rate(999, 1000, 1.0) < learning_rate(800, 1000, 1.0) < learning_rate(600, 1000, 1.0) == 1.0


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a machine that others use too, two threads of a small model mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_shipped_model_solves_30_to_70_per_cent_of_200_development_problems() -> None:
    lines = [json.loads(line) for line in (COUNTDOWN / "development.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    inputs = tokenizer([line["prompt"] for line in lines], padding=True, return_tensors="pt")
    torch.manual_seed(0)
    output = model.generate(**{k: inputs[k] for k in ("input_ids", "attention_mask")})
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(is_correct(line["numbers"], line["target"], text) for line, text in zip(lines, texts, strict=True))
    # Two binomial standard errors are 7 points: the bounds are those of the model, not of the draw.
    assert 0.3 <= right / len(lines) <= 0.7
    assert len({text.split("\n")[0] for text in texts}) > 1, "sampling varies the plan"
