"""The page in a real browser: it runs, nothing a model wrote does, and it can be used with a keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nex_vllm.evaluation.report.page import render_page
from tests.evaluation.chromium import Page, find_chromium, open_chromium
from tests.evaluation.pages import html_of
from tests.evaluation.recorded import HOSTILE, report_of_many, write_cache, write_comparison_directory

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium here, so the report's page was not opened (bash tools/chromium.sh)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def write_page(source: Path) -> Path:
    page = source.with_suffix(".html")
    page.write_text(html_of(source), encoding="utf-8")
    return page


def value(page: Page, element: str, attribute: str = "textContent") -> str:
    found: str = page.evaluate(f"document.getElementById({element!r}).{attribute}")
    return found


def test_hostile_texts_are_shown_and_do_not_run(browser: Page, tmp_path: Path) -> None:
    page = write_page(write_cache(tmp_path / "cache", HOSTILE))
    browser.open(page)
    for number, text in enumerate(HOSTILE):
        assert value(browser, "choice", "selectedIndex") == number
        visible = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 else "\u2421" if c == "\x7f" else c for c in text)
        assert value(browser, "text") == visible
        assert visible in value(browser, "prompt")
        phases = browser.evaluate("[...document.querySelectorAll('#text .row')].map(r => r.className[4]).join('')")
        assert set(phases) == {"e", "x"}
        assert len(phases) == 12
        if number + 1 < len(HOSTILE):
            browser.evaluate("document.getElementById('next').click()")
    assert value(browser, "next", "disabled") is True
    assert browser.evaluate("document.querySelectorAll('#response img, #response script, #text svg').length") == 0
    assert browser.evaluate("window.stolen") is None
    assert browser.complaints == []
    assert set(browser.requests) == {page.as_uri()}


def test_what_is_forbidden_is_seen(browser: Page, tmp_path: Path) -> None:
    """The checks above can fail: a script of another making is blocked, and said, and so is another host."""
    page = write_page(write_cache(tmp_path / "cache", HOSTILE[:1]))
    spoiled = page.read_text().replace(
        "</main>", "</main><script>window.stolen = 1</script><img src='http://x.invalid/'>"
    )
    (tmp_path / "spoiled.html").write_text(spoiled)
    browser.open(tmp_path / "spoiled.html")
    assert browser.evaluate("window.stolen") is None
    assert len([each for each in browser.complaints if "Content Security Policy" in each]) == 2
    browser.complaints.clear()


def test_a_keyboard_moves_through_rows_and_a_search_through_responses(browser: Page, tmp_path: Path) -> None:
    texts = [f"response about {word}" for word in ("apples", "pears", "plums")]
    browser.open(write_page(write_cache(tmp_path / "cache", texts)), width=380)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    browser.evaluate("document.getElementById('curve').focus()")
    for _ in range(3):
        browser.press("ArrowRight", 39)
    assert value(browser, "readout").startswith("Row 4 · ")
    assert browser.evaluate("document.activeElement.getAttribute('aria-valuenow')") == "4"
    assert browser.evaluate("document.querySelector('#text .here') === document.getElementById('text').children[3]")
    browser.evaluate("document.getElementById('search').focus()")
    browser.call("Input.insertText", text="PLUMS")
    assert value(browser, "found") == "1 of 3"
    assert value(browser, "text") == texts[2]
    assert browser.complaints == []


def test_a_comparison_opens_in_both_colour_schemes(browser: Page, tmp_path: Path) -> None:
    page = write_page(write_comparison_directory(tmp_path / "comparison"))
    colors = []
    for dark in (False, True):
        browser.open(page, dark=dark)
        colors.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert "chosen by nex" in browser.evaluate("document.querySelector('#choice').textContent")
    assert len(set(colors)) == 2
    # The last candidate has no rows: its text is shown, without phases.
    browser.evaluate(
        "{const c = document.getElementById('choice'); c.selectedIndex = 23; c.dispatchEvent(new Event('change'))}"
    )
    assert value(browser, "curve", "hidden") is True
    assert value(browser, "text").startswith("thinking of")
    assert browser.complaints == []


def test_a_thousand_responses_are_listed_searched_and_opened(browser: Page, tmp_path: Path) -> None:
    page = tmp_path / "many.html"
    page.write_text(render_page(report_of_many(1030, 1000)), encoding="utf-8")
    assert page.stat().st_size > 4 << 20, "as large as pages of that many are"
    browser.open(page)
    assert value(browser, "found") == "1000 of 1000"
    assert browser.evaluate("document.querySelectorAll('#choice option').length") == 1000
    said = value(browser, "responses")
    assert "The first 1000 of 1030 responses are here (no more were asked for); all of them count in tables" in said

    for letters, found in (("THE NEEDLE 7", 111), ("2", 11), ("6.", 1)):
        browser.evaluate("document.getElementById('search').focus()")
        browser.call("Input.insertText", text=letters)
        assert value(browser, "found") == f"{found} of 1000"
    assert value(browser, "name") == "problem-181-2"
    assert "the needle 726.\n" in value(browser, "text")
    assert browser.evaluate("document.querySelectorAll('#text .row').length") == 60
    assert browser.evaluate("document.querySelectorAll('#curve svg polyline').length") > 1
    assert browser.evaluate("document.querySelectorAll('#cycles tbody tr').length") > 0

    # All are listed again, and what is open stays open, at its row.
    browser.evaluate("document.getElementById('curve').focus()")
    browser.press("ArrowRight", 39)
    browser.evaluate("{const s = document.getElementById('search'); s.value = ''; s.dispatchEvent(new Event('input'))}")
    assert value(browser, "found") == "1000 of 1000"
    assert value(browser, "choice", "selectedIndex") == 726
    assert value(browser, "readout").startswith("Row 2 · ")
    browser.evaluate(
        "{const o = document.getElementById('order'); o.value = 'high'; o.dispatchEvent(new Event('change'))}"
    )
    assert value(browser, "choice", "selectedOptions[0].textContent").startswith("problem-181-2 · ")
    assert browser.evaluate("document.getElementById('choice').options[0].textContent").startswith("problem-25-0 · ")
    assert browser.complaints == []
