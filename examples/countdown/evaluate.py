"""Measure the model on held-out problems: pass@1, what a perfect choice among n would give, and lengths."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Annotated

import torch
import typer
from problems import is_correct
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
BATCH = 125


@dataclass(frozen=True)
class Outcome:
    """One sampled response: the problem's size, whether it is right, whether it ended by itself, its tokens."""

    problem: int
    numbers: int
    correct: bool
    ended: bool
    tokens: int


def sample(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[dict[str, object]], samples: int
) -> list[Outcome]:
    """Sample ``samples`` responses to each problem with the settings of settings.json and check them."""
    settings = json.loads((HERE / "settings.json").read_text())
    todo = [i for i in range(len(problems)) for _ in range(samples)]
    outcomes = []
    for start in tqdm(range(0, len(todo), BATCH), unit="batch"):
        chosen = todo[start : start + BATCH]
        inputs = tokenizer([str(problems[i]["prompt"]) for i in chosen], padding=True, return_tensors="pt")
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            top_k=0,
            max_new_tokens=settings["max_tokens"],
        )
        for i, ids in zip(chosen, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            ended = tokenizer.eos_token_id in ids
            length = ids.index(tokenizer.eos_token_id) + 1 if ended else len(ids)
            text = tokenizer.decode(ids[:length], skip_special_tokens=True)
            numbers, target = problems[i]["numbers"], problems[i]["target"]
            assert isinstance(numbers, list)
            assert isinstance(target, int)
            outcomes.append(Outcome(i, len(numbers), is_correct(numbers, target, text), ended, length))
    return outcomes


def rate(outcomes: Iterable[tuple[int, bool]]) -> str:
    """Return the share of hits in per cent with its standard error, from pairs of problem and hit.

    With one sample a problem this is the binomial standard error; with more, the samples of one problem are not
    independent, and the error is that of the mean over problems.
    """
    hits: dict[int, list[bool]] = {}
    for problem, hit in outcomes:
        hits.setdefault(problem, []).append(hit)
    shares = [sum(h) / len(h) for h in hits.values()]
    return f"{100 * mean(shares):.1f} % +- {100 * pstdev(shares) / math.sqrt(len(shares)):.1f} (n = {len(shares)})"


def quantiles(values: list[int]) -> str:
    """Return minimum, 5th, 25th, 50th, 75th and 95th percentile, maximum and mean."""
    ordered = sorted(values)
    at = [ordered[round(q * (len(ordered) - 1))] for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)]
    return f"min {at[0]}, quantiles 5/25/50/75/95 % {at[1:6]}, max {at[6]}, mean {sum(values) / len(values):.1f}"


def main(
    model: Annotated[Path, typer.Option(help="Model folder.")] = HERE / "model",
    problems: Annotated[Path, typer.Option(help="Problems with numbers and target, one JSON object a line.")] = HERE
    / "development.jsonl",
    samples: Annotated[int, typer.Option(help="Responses for each problem.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Print pass@1 with its standard error, pass@n for n samples, and the lengths of the responses."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    lines = [json.loads(line) for line in problems.read_text().splitlines()]
    outcomes = sample(network, tokenizer, lines, samples)
    print("pass@1", rate((o.problem, o.correct) for o in outcomes))
    for size in sorted({o.numbers for o in outcomes}):
        print(f"  {size} numbers", rate((o.problem, o.correct) for o in outcomes if o.numbers == size))
    if samples > 1:
        solved = {o.problem for o in outcomes if o.correct}
        print(f"pass@{samples}", rate((i, i in solved) for i in range(len(lines))))
    print("ended by itself", rate((o.problem, o.ended) for o in outcomes))
    width = json.loads((HERE / "settings.json").read_text())["row_tokens"]
    print("tokens of a response:", quantiles([o.tokens for o in outcomes]))
    print(f"rows of {width} tokens:", quantiles([-(-o.tokens // width) for o in outcomes]))


if __name__ == "__main__":
    typer.run(main)
