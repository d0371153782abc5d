"""Everything that only a GPU can tell, in one command of eight minutes at most.

    python benchmarks/gpu_suite.py [--out FOLDER] [--minutes 8] [--plan]

Needs torch, Triton and vLLM, no network, and no installed nex-vllm: vLLM finds the checkout's entry point through a
dist-info folder on ``PYTHONPATH``. Every phase runs in a process of its own with a time limit of its own, and results
are written after each, so that a phase that fails does not affect the others:

    imports     what can be imported; that the engine's path needs nothing that only calibration does
    kernels     tests/kernels on the GPU (a few direct comparisons where pytest is absent)      at the same time
    capture     taps and selection captured and replayed, over buffers that a larger step left        |
    sums        the engine's sums against transformers, float32 and bfloat16, graphs and compile on   |
    speed       kernel_speed.py
    overhead    Qwen3-4B shape, dummy weights, 3 to 384 sequences: plain, idle, selecting
    trace       the kernels of a decode step at 96 sequences, plain and selecting
    scaling     scaling.py

Last comes a table of targets and what was measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, check_result_path, write_result
from targets import TARGETS

SEQUENCES = (3, 24, 96, 384)
SHAPE = "qwen3-4b"
# With less time left than this, no phase is started.
LEAST_SECONDS = 25


@dataclass(frozen=True)
class Phase:
    """One process.

    Attributes:
        name: under which its outcome is written.
        arguments: of the Python interpreter.
        seconds: after which it is ended.
        result: the JSON file that it writes; None where there is none.
        environment: what is set for it alone.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: int
    result: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()


def write_dist_info(folder: Path) -> None:
    """Write a dist-info folder with the checkout's entry points, which is all that ``importlib.metadata`` reads."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def environment(work: Path) -> dict[str, str]:
    """Return the environment of all phases."""
    write_dist_info(work / "plugin")
    paths = [str(work / "plugin"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    defaults = {
        "VLLM_CACHE_ROOT": str(work / "vllm-cache"),
        "TRITON_CACHE_DIR": str(work / "triton-cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor-cache"),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A front end that has used torch's threads must not be forked.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if importlib.util.find_spec("flashinfer") is None:
        # The sampler would import it and fail.
        defaults["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def stages(work: Path, out: Path) -> list[list[Phase]]:
    """Return the phases in order; those of one stage run at the same time, because they time nothing."""

    def script(name: str) -> str:
        return str(ROOT / "benchmarks" / name)

    def check(program: str, name: str, seconds: int, what: str, *arguments: str, **variables: str) -> Phase:
        file = work / f"{name}.json"
        return Phase(name, (script(program), what, str(file), *arguments), seconds, file, tuple(variables.items()))

    kernels = check("gpu_kernel_checks.py", "kernels", 120, "direct")
    if importlib.util.find_spec("pytest") is not None:
        # Without the project's own options, which name plugins that may be absent.
        spread_out = ("-n", "6") if importlib.util.find_spec("xdist") is not None else ()
        options = ("-q", "-m", "not slow", "-o", "addopts=", "-p", "no:cacheprovider", *spread_out)
        pytest = ("-m", "pytest", "tests/kernels", *options)
        kernels = Phase("kernels", pytest, 120)
    speed, overhead = out / "kernels-gpu.json", out / f"overhead-gpu-{SHAPE}-decode.json"
    prompts = [str(count // 3) for count in SEQUENCES]
    trace = ("--work", str(work), "--shape", SHAPE, "--max-num-seqs", str(max(SEQUENCES)))
    own_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    checks = "gpu_engine_checks.py"
    return [
        [check(checks, "imports", 60, "imports")],
        [
            kernels,
            check("gpu_kernel_checks.py", "capture", 90, "capture"),
            check(checks, "sums-float32", 130, "sums", "--dtype", "float32"),
            check(checks, "sums-bfloat16", 130, "sums", "--dtype", "bfloat16"),
        ],
        [Phase("speed", (script("kernel_speed.py"), "--json", str(speed)), 80, speed)],
        [
            Phase(
                "overhead",
                (
                    script("overhead.py"),
                    "--shape",
                    SHAPE,
                    "--prompts",
                    *prompts,
                    "--tokens",
                    "96",
                    "--work",
                    str(work),
                    "--json",
                    str(overhead),
                ),
                230,
                overhead,
            ),
        ],
        [check(checks, "trace-plain", 80, "trace", "--side", "plain", *trace, **own_process)],
        [check(checks, "trace-selecting", 80, "trace", "--side", "selecting", *trace, **own_process)],
        [Phase("scaling", (script("scaling.py"), "--out", str(out)), 40, out / "scaling-gpu.json")],
    ]


def print_plan(every: list[list[Phase]]) -> None:
    """Print what would run: a line for every phase, an empty line after every stage."""
    for stage in every:
        for phase in stage:
            command = " ".join(phase.arguments).replace(f"{ROOT}/", "")
            print(f"{phase.name:>16}: at most {phase.seconds} s: python {command}")
        print()


def run(phase: Phase, work: Path, base: dict[str, str], deadline: float) -> dict[str, Any]:
    """Run one phase; end it, and all that it started, when its time or that of the suite is over."""
    if phase.result is not None:
        # An earlier run's file is no result of this one.
        phase.result.unlink(missing_ok=True)
    seconds = min(phase.seconds, deadline - time.monotonic())
    if seconds < LEAST_SECONDS:
        return {"status": "skipped: no time left"}
    log = work / f"{phase.name}.log"
    started = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, *phase.arguments],
            cwd=ROOT,
            env={**base, **dict(phase.environment)},
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
            status = "passed" if code == 0 else f"failed with exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"ended after {seconds:.0f} s"
        finally:
            _end(process)
    outcome: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
    if phase.result is not None and phase.result.exists():
        if phase.result.is_relative_to(work):
            outcome["result"] = json.loads(phase.result.read_text())
        else:
            outcome["file"] = phase.result.name
    if status != "passed" or phase.result is None:
        tail = log.read_text(errors="replace")[-3000:]
        outcome["output_tail"] = tail.replace(str(ROOT), ".").replace(str(work), "WORK")
    return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process group of a phase: engines run in processes of their own."""
    for sent, patience in ((signal.SIGTERM, 8), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
    process.poll()


def added_kernels(plain: dict[str, Any], selecting: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a step with NEX runs more, and what less, by kernel; the largest difference first."""
    nothing = {"launches": 0.0, "microseconds": 0.0}
    found = []
    for name in {**plain["kernels"], **selecting["kernels"]}:
        before, after = plain["kernels"].get(name, nothing), selecting["kernels"].get(name, nothing)
        found.append({"kernel": name, **{key: after[key] - before[key] for key in nothing}})
    found = [each for each in found if abs(each["launches"]) > 0.01 or abs(each["microseconds"]) > 0.5]
    return sorted(found, key=lambda each: -abs(each["microseconds"]))


def show(phases: dict[str, Any], out: Path) -> None:
    """Print each phase's outcome, what NEX adds to a step, and last the targets."""
    for name, outcome in phases.items():
        print(f"{name:>16}: {outcome['status']} ({outcome.get('seconds', 0):.0f} s)")
        if outcome["status"] != "passed":
            print("\n".join("    " + line for line in outcome.get("output_tail", "").splitlines()[-12:]))
        if name.startswith("sums") and "result" in outcome:
            print("    " + json.dumps(outcome["result"]))
    for each in phases.get("trace-selecting", {}).get("added", [])[:12]:
        print(f"  {each['microseconds']:+9.1f} us  {each['launches']:+7.2f} launches a step  {each['kernel'][:90]}")
    print(f"\n{'target':<58} {'figure':<34} {'must':>6} {'aim':>6}  measured")
    for target in TARGETS:
        if "GPU" in target.where:
            seen = [each for each in target.read(out) if not each.label.startswith("CPU")]
            values = "; ".join(f"{each.label} {each.median:.3f}" for each in seen)
            print(
                f"{target.where:<58} {target.figure:<34} {target.must:>6g} {target.aim:>6g}  "
                f"{target.verdict(seen)}{': ' if values else ''}{values}"
            )


def main() -> None:
    """Run all stages and write what they find as they find it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8, help="in all (8)")
    parser.add_argument("--plan", action="store_true", help="print the phases and their time limits, and run nothing")
    options = parser.parse_args()
    if options.plan:
        print_plan(stages(Path("WORK"), options.out))
        return
    check_result_path(parser, options.out / "gpu-suite.json")
    deadline = time.monotonic() + 60 * options.minutes - 10
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no GPU here that torch can use; run this on a machine with one")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    phases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        base = environment(work)
        for stage in stages(work, out):
            with ThreadPoolExecutor(len(stage)) as pool:
                running = {pool.submit(run, phase, work, base, deadline): phase for phase in stage}
                for done in as_completed(running):
                    name = running[done].name
                    phases[name] = done.result()
                    print(f"{name}: {phases[name]['status']}", file=sys.stderr, flush=True)
                    traces = [phases.get(f"trace-{side}", {}).get("result") for side in ("plain", "selecting")]
                    if all(traces):
                        phases["trace-selecting"]["added"] = added_kernels(*traces)
                    write_result(
                        out / "gpu-suite.json",
                        "gpu-suite",
                        {"flashinfer_sampler": base.get("VLLM_USE_FLASHINFER_SAMPLER", "default"), "phases": phases},
                    )
    show(phases, out)
    raise SystemExit(0 if all(each["status"] == "passed" for each in phases.values()) else 1)


if __name__ == "__main__":
    main()
