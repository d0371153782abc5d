"""Kernel checks that :mod:`gpu_suite` runs in processes of their own; each writes what it found as JSON.

python benchmarks/gpu_kernel_checks.py direct|capture FILE

Without a GPU, ``direct`` checks what runs on the CPU, and ``capture`` ends with an error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nex_vllm.kernels import naive
from nex_vllm.kernels.choice import choose, reduction
from nex_vllm.kernels.groups import GROUP, groups_per_layer
from nex_vllm.kernels.tap import layer_number, silu_mul_tap, tap


def direct() -> dict[str, Any]:
    """Compare the kernels with the naive operations without pytest, on fewer cases than ``tests/kernels``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, bool] = {}
    rows, layers, width = 37, 3, 2600
    groups = layers * groups_per_layer(width) if device == "cuda" else 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        normal = torch.randn((rows, layers * width), device=device)
        data = {"random": normal, "ties": normal.round(), "equal": torch.ones_like(normal), "none": -normal.abs()}
        for name, values in data.items():
            record, expected = (torch.zeros((rows + 1, layers * width), dtype=dtype, device=device) for _ in range(2))
            maxima, others = (torch.zeros((rows + 1, groups), dtype=dtype, device=device) for _ in range(2))
            slots = torch.arange(rows, dtype=torch.int32, device=device)
            for layer, h in enumerate(values.to(dtype).chunk(layers, 1)):
                tap(h.contiguous(), slots, record, maxima, layer_number(layer, device))
                naive.tap(h, slots, expected, others, layer_number(layer, device))
            found[f"{name} {dtype} tap"] = torch.equal(record[:-1], expected[:-1])
            found[f"{name} {dtype} maxima"] = torch.equal(maxima[:-1], others[:-1])
            weights = torch.rand(layers * width, device=device) * 2 - 1
            for top_k in (1, 150, 10**6):
                ours, reference = (
                    reduction(implementation, record, maxima, weights, top_k, layers)
                    for implementation in (choose(device, dtype), "naive")
                )
                close = torch.allclose(ours.row_sums(rows), reference.row_sums(rows), rtol=2e-5, atol=1e-6)
                every = torch.arange(rows, device=device)
                entries = zip(ours.entries(every), reference.entries(every), strict=True)
                found[f"{name} {dtype} K={top_k}"] = close and all(torch.equal(a, b) for a, b in entries)
    return {"passed": all(found.values()), "failed": [name for name, passed in found.items() if not passed]}


@dataclass(frozen=True)
class _Step:
    """Static buffers of a step of six layers, as the engine has them."""

    x: Any
    slots: Any
    record: Any
    maxima: Any
    weights: Any
    layers: Any

    def run(self) -> list[Any]:
        """Compute and tap every layer; return the products."""
        return [
            silu_mul_tap(x, self.slots, self.record, self.maxima, layer)
            for layer, x in zip(self.layers, self.x, strict=True)
        ]

    def compare(self, products: list[Any], rows: int) -> dict[str, bool]:
        """Compare products, record and maxima with those of the naive tap."""
        expected, others = torch.zeros_like(self.record), torch.zeros_like(self.maxima)
        reference = [
            naive.silu_mul_tap(x, self.slots, expected, others, layer)
            for layer, x in zip(self.layers, self.x, strict=True)
        ]
        record = self.record[:rows]
        return {
            "products": all(map(_close, products, reference)),
            "record": _close(record, expected[:rows]),
            "maxima": torch.equal(self.maxima[:rows], record.view(rows, -1, GROUP).amax(dim=2).clamp_min(0)),
        }


def _close(found: Any, expected: Any) -> bool:
    """Compare to the last bit or two of bfloat16."""
    return torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-3)


def _captured(work: Callable[[], Any]) -> tuple[Any, Any]:
    """Run something twice on a stream of its own, then capture it; return the graph and what it returned."""
    stream: Any = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


def capture() -> dict[str, Any]:
    """Capture taps and selection in CUDA graphs; replay a large step, then a small one over the same buffers."""
    tokens, layers, width, top_k, few = 64, 6, 9728, 2000, 5
    step = _Step(
        x=torch.randn((layers, tokens, 2 * width), device="cuda").to(torch.bfloat16),
        slots=torch.arange(tokens, dtype=torch.int32, device="cuda"),
        record=torch.zeros((tokens + 1, layers * width), dtype=torch.bfloat16, device="cuda"),
        maxima=torch.zeros((tokens + 1, layers * groups_per_layer(width)), dtype=torch.bfloat16, device="cuda"),
        weights=torch.rand(layers * width, device="cuda") * 2 - 1,
        layers=[layer_number(layer, "cuda") for layer in range(layers)],
    )
    operations = reduction("gpu", step.record, step.maxima, step.weights, top_k, layers)
    taps, products = _captured(step.run)
    selection, row_sums = _captured(lambda: operations.row_sums(tokens))
    found: dict[str, bool] = {}

    def replay(name: str, rows: int) -> None:
        taps.replay()
        selection.replay()
        record = step.record[:rows]
        expected = naive.row_sums(record, naive.thresholds(record, top_k), step.weights)
        checks = step.compare(products, rows)
        # In this order, because both write into the same buffer.
        checks["captured sums"] = torch.allclose(row_sums[:rows], expected, rtol=2e-5, atol=0)
        checks["launched sums"] = torch.allclose(operations.row_sums(rows), expected, rtol=2e-5, atol=0)
        found.update({f"{name}: {what}": passed for what, passed in checks.items()})

    replay("large step", tokens)
    stale = step.record[few:tokens].clone()
    # The next step records rows 40 to 44 of the batch and nothing else; the buffers still hold the large step's.
    step.x.copy_(torch.randn_like(step.x))
    step.slots.fill_(-1)
    step.slots[40 : 40 + few] = torch.arange(few, dtype=torch.int32, device="cuda")
    replay("small step", few)
    found["small step: other rows as they were"] = torch.equal(step.record[few:tokens], stale)
    step.slots.fill_(-1)
    before = step.record[:tokens].clone()
    taps.replay()
    found["idle step: nothing recorded"] = torch.equal(step.record[:tokens], before)
    return {"passed": all(found.values()), "checks": found}


def main() -> None:
    """Run one check and write what it found."""
    checks = {"direct": direct, "capture": capture}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=sorted(checks))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.check == "capture" and not torch.cuda.is_available():
        parser.error("there is no GPU here that torch can use, and capture needs one")
    result = checks[options.check]()
    options.file.write_text(json.dumps(result, indent=2) + "\n")
    raise SystemExit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
