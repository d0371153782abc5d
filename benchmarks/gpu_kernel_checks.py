"""Kernel checks that :mod:`gpu_suite` runs in processes of their own; each writes what it found as JSON.

python benchmarks/gpu_kernel_checks.py direct|capture FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nex_vllm.kernels.choice import reduction
from nex_vllm.kernels.select_reduce import masses_naive
from nex_vllm.kernels.tap import GROUP, groups_per_layer, layer_number, silu_mul_tap, silu_mul_tap_naive, tap, tap_naive


def direct() -> dict[str, Any]:
    """Hold the kernels to the naive operations without pytest, on fewer cases than ``tests/kernels``."""
    found: dict[str, bool] = {}
    rows, layers, width = 37, 3, 2600
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        normal = torch.randn((rows, layers * width), device="cuda")
        data = {"random": normal, "ties": normal.round(), "equal": torch.ones_like(normal), "none": -normal.abs()}
        for name, values in data.items():
            buffers = []
            for copy in (tap, tap_naive):
                record = torch.zeros((rows + 1, layers * width), dtype=dtype, device="cuda")
                maxima = torch.zeros((rows + 1, layers * groups_per_layer(width)), dtype=dtype, device="cuda")
                slots = torch.arange(rows, dtype=torch.int32, device="cuda")
                for layer in range(layers):
                    copy(
                        values.to(dtype).chunk(layers, 1)[layer].contiguous(),
                        slots,
                        record,
                        maxima,
                        layer_number(layer, "cuda"),
                    )
                buffers.append((record, maxima))
            (record, maxima), (expected, _) = buffers
            found[f"{name} {dtype} tap"] = torch.equal(record[:-1], expected[:-1])
            weights = torch.rand(layers * width, device="cuda") * 2 - 1
            for top_k in (1, 150, 10**6):
                both = [reduction(kind, record, maxima, weights, top_k, layers) for kind in ("gpu", "naive")]
                ours, naive = (each.masses(rows).clone() for each in both)
                every = torch.arange(rows, device="cuda")
                entries = zip(*(each.entries(every) for each in both), strict=True)
                same = torch.allclose(ours, naive, rtol=2e-5, atol=1e-6)
                found[f"{name} {dtype} K={top_k}"] = same and all(torch.equal(a, b) for a, b in entries)
    return {"passed": all(found.values()), "failed": [name for name, good in found.items() if not good]}


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
        """Hold products, record and maxima to the naive tap and to each other."""
        expected, others = torch.zeros_like(self.record), torch.zeros_like(self.maxima)
        naive = [
            silu_mul_tap_naive(x, self.slots, expected, others, layer)
            for layer, x in zip(self.layers, self.x, strict=True)
        ]
        record = self.record[:rows]
        return {
            "products": all(map(_close, products, naive)),
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
    selection, masses = _captured(lambda: operations.masses(tokens))
    found: dict[str, bool] = {}

    def replay(name: str, rows: int) -> None:
        taps.replay()
        selection.replay()
        naive = masses_naive(step.record[:rows], step.weights, top_k)
        checks = step.compare(products, rows)
        # In this order: both ways leave what they find in the same buffer.
        checks["captured masses"] = torch.allclose(masses[:rows], naive, rtol=2e-5, atol=0)
        checks["launched masses"] = torch.allclose(operations.masses(rows), naive, rtol=2e-5, atol=0)
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
    result = checks[options.check]()
    options.file.write_text(json.dumps(result, indent=2) + "\n")
    raise SystemExit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
