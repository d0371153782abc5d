"""The page: one HTML file that asks nothing of any other host and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nex_vllm.evaluation.report.content import Report
from nex_vllm.evaluation.report.responses import encode_json

_PACKAGE = "nex_vllm.evaluation.report"


def render_page(report: Report) -> str:
    """Return the page of a report as HTML.

    All text is escaped by the template (autoescape), but for style and script, which are ours and named by their
    digests in the policy, and the responses: JSON in script elements that nothing runs, escaped by `encode_json`.
    """
    shown = report.shown
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            policy=content_policy(_source("page.css"), _source("page.js")),
            style=Markup(_source("page.css")),  # noqa: S704 - ours
            script=Markup(_source("page.js")),  # noqa: S704
            index=Markup(encode_json(shown.index if shown else [])),  # noqa: S704 - escaped for the place
            encoded=[Markup(each) for each in shown.encoded] if shown else [],  # noqa: S704
        )
    )


def content_policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that allows this style, this script and pictures in the page, nothing else."""
    return (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    # `report` is not a Python package's usual place for templates: they lie beside the modules.
    loader = PackageLoader(_PACKAGE, "")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _source(name: str) -> str:
    return files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
