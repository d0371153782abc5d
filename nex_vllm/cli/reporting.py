"""Draw what was recorded, learned or compared: `nex-vllm report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typer import echo

from nex_vllm.cli.report import format_bytes, progress_bar

if TYPE_CHECKING:
    from nex_vllm.evaluation.report import ReportPlan


def run_report(plan: ReportPlan) -> None:
    """Write the page and the pictures, and say where they are.

    Raises:
        InputError: the source is no cache, weights file or comparison, or an output cannot be written.
    """
    from nex_vllm import __version__
    from nex_vllm.evaluation.report import write_report

    page, *pictures = write_report(plan, f"nex-vllm {__version__}", _progress)
    echo(f"{page} is written ({format_bytes(page.stat().st_size)}); open it in a browser")
    if pictures:
        echo(f"pictures beside it: {', '.join(each.name for each in pictures)}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    with progress_bar(total, "response") as bar:
        yield bar.update
