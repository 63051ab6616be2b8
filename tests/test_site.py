"""Builds the documentation site from mkdocs.yml."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None, reason="needs mkdocs-material")
def test_the_site_builds_without_warnings_and_loads_nothing_from_other_hosts(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    built = {path.stem for path in site.glob("*.html")}
    assert built >= {path.stem for path in (ROOT / "docs").glob("*.md")}
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]*)"|<link[^>]*\shref="([^"]*)"', page)
        assert loaded and not [source for pair in loaded for source in pair if "//" in source], path.name
        # A list or table without a blank line before it stays plain text in a paragraph.
        assert not re.search(r"<p>[^<]*\n(?:- |\|)", page), f"{path.name}: Markdown shows as text"
