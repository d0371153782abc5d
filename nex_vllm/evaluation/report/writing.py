"""The page and the pictures beside it, as files."""

from __future__ import annotations

from pathlib import Path

from nex_vllm.evaluation.report.sources import Progress, ReportPlan, find_source
from nex_vllm.storage import check_writable_output
from nex_vllm.storage.atomic import write_atomically


def write_report(plan: ReportPlan, created_with: str, progress: Progress) -> list[Path]:
    """Write the page and its pictures and return their paths, the page first.

    Raises `InputError` where the source is none of the three or damaged, or an output is in it, is there already
    without ``force``, or cannot be written.
    """
    describe, names = find_source(plan)
    for path in (plan.out, *(picture_path(plan.out, name) for name in names)):
        check_writable_output(path, plan.force, plan.path)
    report = describe(plan, created_with, progress)
    from nex_vllm.evaluation.report.page import render_page
    from nex_vllm.evaluation.report.pictures import choose_pictures, draw_picture

    # The page last: where it is, the pictures are.
    written = []
    for name, draw in choose_pictures(report).items():
        written.append(picture_path(plan.out, name))
        write_atomically(written[-1], draw_picture(draw))
    write_atomically(plan.out, render_page(report).encode())
    return [plan.out, *written]


def picture_path(page: Path, name: str) -> Path:
    """Return the path of a picture beside the page: ``report.html`` has ``report-NAME.png``."""
    return page.with_name(f"{page.stem}-{name}.png")
