"""Write the README's table of measured figures from the result files.

    python benchmarks/table.py [--check] [--readme FILE] [--results FOLDER]

It goes between the markers ``<!-- benchmarks: begin -->`` and ``<!-- benchmarks: end -->``. With ``--check`` nothing is
written, and the exit status is 1 where the README says something else than the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import RESULTS, ROOT
from targets import TARGETS, Seen, Target, load

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def figure(value: float) -> str:
    """Format a figure: ratios near 1 with three digits, the others with one."""
    return f"{value:.3f}" if value < 2 else f"{value:.1f}"


def cell(seen: list[Seen]) -> str:
    """Format what was measured: every size's median, with the lowest and highest round."""
    if not seen:
        return "not yet measured"
    parts = [f"**{figure(each.median)}** ({figure(each.low)} to {figure(each.high)})" for each in seen]
    if len(seen) == 1:
        return parts[0]
    return "<br>".join(f"{each.label}: {part}" for each, part in zip(seen, parts, strict=True))


def row(target: Target, folder: Path) -> str:
    """Format one line of the table."""
    cells = (target.where, target.figure, f"{target.must:g}", f"{target.aim:g}", cell(target.read(folder)))
    return f"| {' | '.join(cells)} |"


def source(folder: Path, name: str) -> str:
    """Format where a result file's figures come from."""
    content = load(folder, name)
    assert content is not None, "only files that were read are named"
    machine, versions = content["machine"], content["versions"]
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    where = f"{device}{machine['cores']} cores of {machine['processor']}"
    software = ", ".join(f"{what} {versions[what]}" for what in ("vllm", "torch") if what in versions)
    return f"- `{name}.json`: {where}; {software}; {content['date'][:10]}; `{content['command']}`"


def table(folder: Path) -> str:
    """Return everything between the markers."""
    lines = [
        "| what | figure | must | aim | measured: median (lowest to highest round) |",
        "| --- | --- | --- | --- | --- |",
        *(row(target, folder) for target in TARGETS),
    ]
    names = list(dict.fromkeys(each.source for target in TARGETS for each in target.read(folder)))
    if names:
        lines += ["", "Measured on, in `benchmarks/results/`:", "", *(source(folder, name) for name in names)]
    return "\n".join(lines)


def main() -> None:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the table is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file with the markers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    options = parser.parse_args()
    text = options.readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        sys.exit(f"error: {options.readme.name} needs the lines {BEGIN} and {END}, once each and in this order.")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    current = f"{before}{BEGIN}\n\n{table(options.results)}\n\n{END}{after}"
    if options.check:
        if current != text:
            sys.exit(f"error: the table in {options.readme.name} is out of date; run python benchmarks/table.py")
        return
    options.readme.write_text(current)


if __name__ == "__main__":
    main()
