"""The web page of a report: its content, its escapes, and its layout in a browser."""

import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from scored import row, write_archive

from mmemo.archives.archive_page import Palette, build_page, plot_periods
from mmemo.archives.archive_summary import SummaryOptions, summarize_archive
from mmemo.plots import COLORS


ATTACK = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>-->"
COLUMNS = {"queue": pa.string(), "day": pa.string(), ATTACK: pa.string()}
CHROMIUM = shutil.which("chromium")
EMPTY_ELEMENTS = {"meta", "br"}


@pytest.fixture
def summary(tmp_path):
    """Two months with one between them that has no rows; texts of all kinds contain markup."""
    rows = [
        row("a.wav", "angry", 0.9, spans=[(0, 36, "angry")], queue=ATTACK, day="2026-01-31"),
        row("b.wav", "sad", 0.6, spans=[(0, 18, "sad")], queue="客服", day="2026-03-01"),
        row("c.wav", "uncertain", 0.3, queue="客服", day=ATTACK),
        row("d.wav", ATTACK, 0.5, queue=None, day="2026-03-01"),
        row("e.wav", "silence", queue=None, day=None, warnings=[ATTACK]),
        row(ATTACK, error=f"{ATTACK} is not readable audio.", attempts=2, **{ATTACK: ATTACK}),
    ]
    folder = write_archive(tmp_path / "out & in", rows, COLUMNS, model=ATTACK)
    return summarize_archive(str(folder), SummaryOptions(by=("queue", ATTACK), time="day", top=2))


class Page(HTMLParser):
    """Parses a page; raises an error if elements are not closed in order."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in EMPTY_ELEMENTS:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_figures(summary):
    page = Page(build_page(summary))
    text = " ".join(" ".join(page.texts).split())

    assert "Predicted by model <script>" in text
    assert "fingerprint 0123456789ab, job started 2026-01-31 22:00 UTC" in text
    assert "predicted 5 failed 1 16.7% (3.0\u201356.4)" in text
    assert "angry 20.0% 3.6\u201362.4 1 66.7% 0.01" in text
    assert "Rows in no month: 2 without day, 1 with an unreadable day, such as" in text
    assert "Figures of 2 months" in text and "客服" in text and "(missing)" in text and "others (1 value)" in text
    assert "After 2 attempts: 0 predicted, 1 failed." in text and "FILE is not readable audio." in text


def test_texts_are_escaped(summary):
    page = Page(build_page(summary))

    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert sum(ATTACK in text for text in page.texts) >= 8


def test_nothing_is_loaded(summary):
    content = build_page(summary)
    page = Page(content)

    assert "default-src 'none'" in content
    assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    style = content[content.index("<style>") : content.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_no_optional_parts(tmp_path):
    summary = summarize_archive(str(write_archive(tmp_path, [row("a.wav", "sad")])))

    content = build_page(summary)

    assert "<svg" not in content and "Failed:" not in content and "speech" not in "".join(Page(content).texts).split()


def test_only_failed_rows(tmp_path):
    folder = write_archive(tmp_path, [row("a.wav", error="no", day="2026-01-01")], COLUMNS)

    content = build_page(summarize_archive(str(folder), SummaryOptions(by=("queue",), time="day")))

    assert "<svg" in content and "nan" not in "".join(Page(content).texts)


def test_no_readable_times(tmp_path):
    folder = write_archive(tmp_path, [row("a.wav", "sad", day="no")], COLUMNS)

    content = build_page(summarize_archive(str(folder), SummaryOptions(time="day")))

    assert "<svg" not in content and "Rows in no month: 1 with an unreadable day" in content


def test_colors_are_those_of_the_plots():
    palette = Palette(["angry", "bored", "uncertain", "silence"])

    assert palette.colors["angry"] == COLORS["angry"].lower()
    assert len(set(palette.colors.values())) == 4
    assert palette.css().splitlines()[0] == f".c0 {{ background: {COLORS['angry'].lower()}; }}"
    assert "repeating-linear-gradient" in palette.css().splitlines()[2]


def figures(number, rows, **shares):
    labels = {label: {"rows": 0, "share": share} for label, share in shares.items()}
    return {"name": f"m{number}", "number": number, "rows": rows, "labels": labels}


def test_a_plot_over_time():
    periods = [figures(4, 10, angry=0.25, sad=0.75), figures(5, 20, angry=1, sad=0), figures(9, 5, angry=0.5, sad=0.5)]

    svg = ElementTree.fromstring(plot_periods(periods, Palette(["angry", "sad"])))

    texts = ["".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"m4", "m5", "m9", "recordings", "share", "100%"} <= set(texts)
    before, after = (
        [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", path.get("d"))]
        for path in svg.iter("{http://www.w3.org/2000/svg}path")
        if COLORS["angry"].lower() in path.get("style", "")
    )
    # Two periods, a gap of one place for all that are missing, and one period.
    width = (max(before) - min(before)) / 2
    assert (max(after) - min(after), min(after) - max(before)) == pytest.approx((width, width), rel=1e-3)


def test_many_periods_stay_small_and_readable():
    periods = [figures(number, 10, angry=0.25, sad=0.75) for number in range(3000)]

    svg = plot_periods(periods, Palette(["angry", "sad"]))

    assert len(svg) < 1_000_000
    assert len(re.findall(r">m\d+<", svg)) <= 13


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser(summary, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    path = tmp_path / "report.html"
    path.write_text(build_page(summary), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (360, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            messages, addresses = [], []
            page.on("console", lambda message, found=messages: found.append(message.text))
            page.on("dialog", lambda dialog, found=messages: found.append(dialog.message))
            page.on("request", lambda request, found=addresses: found.append(request.url))
            page.goto(path.as_uri())

            assert (messages, addresses) == ([], [path.as_uri()])
            # Wide tables scroll inside the page.
            assert page.evaluate("document.documentElement.scrollWidth") == width
            color = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            assert (min(map(int, re.findall(r"\d+", color))) > 200) is (scheme == "dark")
            page.close()
        browser.close()
