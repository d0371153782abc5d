"""Pages of the report, and what a browser would find in one."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from nex_vllm.evaluation.report import ReportPlan, write_report
from nex_vllm.evaluation.report.content import Report
from nex_vllm.evaluation.report.page import render_page
from nex_vllm.evaluation.report.sources import find_source


class _NoBar:
    def __enter__(self) -> Any:
        return lambda: None

    def __exit__(self, *_: object) -> None:
        pass


def report(path: Path, out: Path, **options: Any) -> list[Path]:
    return write_report(ReportPlan(path, out, **options), "nex-vllm test", lambda _: _NoBar())


def page_of(path: Path, **options: Any) -> Report:
    """Return what a page of the source says, before it is laid out."""
    plan = ReportPlan(path, path.with_suffix(".html"), **options)
    describe, _ = find_source(plan)
    return describe(plan, "nex-vllm test", lambda _: _NoBar())


def html_of(path: Path, **options: Any) -> str:
    """Return the page of a source, without drawing its pictures."""
    return render_page(page_of(path, **options))


class Parsed(HTMLParser):
    """What a browser would find in a page: elements with their attributes, and the text of each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag in {"script", "style"} and data.strip():
            self.raw.append(({**attributes, "tag": tag}, data))
        else:
            self.text += data

    @property
    def responses(self) -> list[dict[str, Any]]:
        return [json.loads(text) for attributes, text in self.raw if attributes.get("class") == "response"]


def parse(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))
