"""Train the Countdown model from scratch; the defaults are the run that made the shipped model."""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
import typer
from problems import Problem
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizer import build_tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from traces import problem_stream, worked_solution
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
LONGEST = 512
"""Tokens of prompt and response together."""

BLOCK = 1024
"""Problems that are sorted by length together, so that a batch is hardly padded."""

IGNORE = -100
log = logging.getLogger("countdown.train")


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Return the shape of the model: 3.0 million parameters, 4 x 1024 gated MLP neurons."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


def training_problems(seed: int) -> Iterator[Problem]:
    """Yield the problems of the training run in their order, without end."""
    return problem_stream(seed, "train")


def _encode(problem: Problem, rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    prompt = tokenizer.encode(problem.prompt)
    response = tokenizer.encode(worked_solution(problem, rng))
    return [*prompt, *response, tokenizer.eos_token_id][:LONGEST], len(prompt)


def _pad(examples: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), IGNORE)
    for row, (tokens, prompt) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
    return ids, labels


def batches(seed: int, tokens: int, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(ids, labels)`` of about ``tokens`` tokens, each ``[sequences, length]`` int64, without end.

    Sequences are padded on the right, where causal attention never looks; prompts and padding carry no label.
    """
    problems = training_problems(seed)
    rng = random.Random(f"solutions {seed}")
    while True:
        block = [_encode(p, rng, tokenizer) for p in islice(problems, BLOCK)]
        block.sort(key=lambda example: len(example[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for example in block:
            if (len(groups[-1]) + 1) * len(example[0]) > tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            yield _pad(group, tokenizer.pad_token_id)


# Compiled, a step takes a fifth less.
@torch.compile(dynamic=True)
def loss_of(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the labelled tokens."""
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the rate at a step: warm-up over 100 steps, constant, then down to zero over the last 30 %.

    Until the descent begins it does not depend on ``steps``: a run can be lengthened or cut short up to there.
    """
    left = (steps - step) / (0.3 * steps)
    return peak * min(1.0, (step + 1) / 100, left)


def _optimizer(model: nn.Module, peak: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def _replace(folder: Path, new: Path) -> None:
    """Put the files of ``new`` into ``folder``, one atomic rename each, and leave other files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in new.iterdir():
        file.replace(folder / file.name)
    new.rmdir()


def save_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that transformers and vLLM load: config, float32 weights, tokenizer, sampling defaults."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    settings = json.loads((HERE / "settings.json").read_text())
    generation = model.generation_config
    generation.do_sample, generation.top_k = True, 0
    generation.temperature, generation.top_p = settings["temperature"], settings["top_p"]
    generation.max_new_tokens = settings["max_tokens"]
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    # Names that transformers 4 and 5 both know, and the chat template inside: one file less to lose.
    file = new / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": tokenizer.chat_template,
    }
    file.write_text(json.dumps(config, indent=2) + "\n")
    (new / "chat_template.jinja").unlink(missing_ok=True)
    (new / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
    _replace(folder, new)


def _save_state(model: nn.Module, optimizer: torch.optim.AdamW, step: int, file: Path, run: dict[str, str]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        state: dict[str, Any] = optimizer.state[parameter]
        tensors[f"mean.{name}"], tensors[f"square.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    tensors["step"] = torch.tensor(step)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file.with_suffix(".new"), metadata=run)
    file.with_suffix(".new").replace(file)


def _load_state(model: nn.Module, optimizer: torch.optim.AdamW, file: Path, run: dict[str, str]) -> int:
    with safe_open(file, framework="pt") as stored:
        found = stored.metadata()
    if found != run:
        sys.exit(f"error: {file} belongs to another run ({found}, not {run}); give another --state, or delete it")
    tensors = load_file(file)
    step = int(tensors["step"])
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"weight.{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"mean.{name}"],
            "exp_avg_sq": tensors[f"square.{name}"],
        }
    return step


def main(
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 3600,
    seed: Annotated[int, typer.Option(help="Seed of weights, problems and solutions.")] = 2,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-3,
    tokens: Annotated[int, typer.Option(help="Tokens of a batch, padding included.")] = 2048,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = HERE / "model",
    state: Annotated[
        Path | None, typer.Option(help="File to go on from, if it exists; OUT.state.safetensors by default.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 250,
) -> None:
    """Train the Countdown model on the CPU in float32 and save it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(LONGEST)
    model = Qwen3ForCausalLM(model_config(tokenizer))
    optimizer = _optimizer(model, peak)
    state = out.with_name(f"{out.name}.state.safetensors") if state is None else state
    run = {"seed": str(seed), "steps": str(steps), "tokens": str(tokens), "peak": str(peak)}
    done = _load_state(model, optimizer, state, run) if state.exists() else 0
    log.info("%d parameters, from step %d", sum(p.numel() for p in model.parameters()), done)
    stream = islice(batches(seed, tokens, tokenizer), done, steps)
    progress = tqdm(stream, initial=done, total=steps, mininterval=10, unit="step")
    running = 0.0
    for step, (ids, labels) in enumerate(progress, start=done):
        loss = loss_of(model, ids, labels)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()
        optimizer.zero_grad()
        running = loss.item() if step == done else 0.98 * running + 0.02 * loss.item()
        progress.set_postfix(loss=f"{running:.4f}", refresh=False)
        if (step + 1) % 50 == 0:
            log.info("step %d loss %.4f", step + 1, running)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_model(model, tokenizer, out)
            _save_state(model, optimizer, step + 1, state, run)


if __name__ == "__main__":
    typer.run(main)
