"""Say what is in a weights file or an activation cache: `nex-vllm inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from typer import echo

from nex_vllm.algorithm.rows import KEY_UNIT_BITS
from nex_vllm.algorithm.weights import WeightAccumulator
from nex_vllm.cli.report import (
    Line,
    calibration_lines,
    format_bytes,
    format_decimal,
    format_percent,
    print_diagnostics,
    print_table,
    progress_bar,
)
from nex_vllm.errors import InputError
from nex_vllm.evaluation.diagnostics import diagnose
from nex_vllm.evaluation.evidence import CalibrationBuilder, prompt_ids
from nex_vllm.storage import CacheReader, WeightsFile, decode_diagnostics, load_weights

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def run_inspect(path: Path) -> None:
    """Print a summary of a weights file or of a cache.

    Raises:
        InputError: it is neither, or damaged.
    """
    if path.is_dir():
        _inspect_cache(path)
    elif path.exists():
        _inspect_weights(path, load_weights(path))
    else:
        raise InputError(f"{path} does not exist; give a weights file or the directory of an activation cache")


def _inspect_weights(path: Path, file: WeightsFile) -> None:
    weights, meta = file.weights, file.meta
    positive, negative, total = int((weights > 0).sum()), int((weights < 0).sum()), len(weights)
    num_neurons = meta.num_layers * meta.intermediate_size
    where = f"{path}: metadata `diagnostics`"
    diagnostics = None if meta.diagnostics is None else decode_diagnostics(meta.diagnostics, where)
    echo(f"weights file {path}")
    echo(
        f"for the model {meta.model} (fingerprint {meta.model_fingerprint}); another model of the same layers and "
        "widths, such as a fine-tune, can be served with it by --nex-accept-other-model\n"
    )
    print_table(
        [
            *((name, _plain(value)) for name, value in asdict(meta).items() if name != "diagnostics" and value != ""),
            ("size on disk", format_bytes(path.stat().st_size)),
        ],
        right_aligned=None,
    )
    echo()
    print_table(
        [
            ("neurons of the model", str(num_neurons)),
            ("  with a weight", str(total), format_percent(total, num_neurons)),
            ("  positive", str(positive), format_percent(positive, total)),
            ("  negative", str(negative), format_percent(negative, total)),
            *(
                (f"weight, {_quantile_name(q)}", format_decimal(float(np.quantile(weights, q))))
                for q in QUANTILES
                if total
            ),
        ]
    )
    echo()
    layers = (file.keys >> np.uint32(KEY_UNIT_BITS)).astype(np.int64)
    counts = np.bincount(layers, minlength=meta.num_layers)
    good = np.bincount(layers[weights > 0], minlength=meta.num_layers)
    lines: list[Line] = [("layer", "weights", "of its units", "positive")]
    for layer, (count, plus) in enumerate(zip(counts.tolist(), good.tolist(), strict=True)):
        lines.append(
            (str(layer), str(count), format_percent(count, meta.intermediate_size), format_percent(plus, count))
        )
    print_table(lines)
    echo()
    if diagnostics is None:
        echo("no diagnostics: the program that wrote this file kept none; calibrate again to have them")
    else:
        print_diagnostics(diagnostics)


def _inspect_cache(path: Path) -> None:
    reader = CacheReader(path)
    num_entries = 0
    accumulator, builder, prompts = WeightAccumulator(), CalibrationBuilder(), prompt_ids(reader)
    with progress_bar(len(reader), "response") as bar:
        for rows in reader.rows():
            builder.add(rows, prompts[rows.response], accumulator.add(rows))
            num_entries += len(rows.keys)
            bar.update()
    summary = accumulator.summary()
    echo(f"activation cache {path}\n")
    listed: list[Line] = []
    if reader.num_listed is not None:
        reasons = Counter(response.finish_reason or "unknown" for response in reader.responses())
        listed = [
            ("listed responses", str(reader.num_listed)),
            *((f"  ended by {reason}", str(count)) for reason, count in sorted(reasons.items())),
        ]
    print_table(
        [
            *((name, _plain(value)) for name, value in asdict(reader.meta).items() if value != ""),
            ("size on disk", format_bytes(reader.size_on_disk)),
        ],
        right_aligned=None,
    )
    echo()
    print_table(
        [
            *listed,
            ("responses with rows", str(len(reader))),
            ("entries", str(num_entries)),
            ("  per row", format_decimal(num_entries / summary.num_rows, 1) if summary.num_rows else "-"),
        ]
    )
    echo("\nwith the default rho, min-run and credit:\n")
    print_table(calibration_lines(summary, reader.meta.row_tokens))
    if summary.num_responses:
        echo()
        print_diagnostics(diagnose(builder.build()))
    # Last, so that everything that is there has been shown.
    reader.check_complete()


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if isinstance(value, str) and not value.isprintable() else str(value)


def _quantile_name(q: float) -> str:
    return {0.0: "smallest", 0.5: "median", 1.0: "largest"}.get(q, f"{100 * q:.0f} % quantile")
