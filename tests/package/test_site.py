"""The documentation as a site, where MkDocs is installed: docs/build.py takes no warning."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pages import PAGES, ROOT, headings_of, slug_of


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, str(ROOT / "docs" / "build.py"), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        name = page.relative_to(ROOT).with_suffix(".html")
        html = (tmp_path / "site" / name.parent / name.name.replace("README", "index")).read_text()
        for heading in headings_of(page):
            assert f'id="{slug_of(heading)}"' in html, (page, heading)
        tables = re.findall(r"^\| ?-{3}", page.read_text(encoding="utf-8"), re.M)
        assert html.count("<table>") == len(tables), page
        assert not re.search(r"<p>[^<]*\n[*|] ", html), (
            page
        )  # a list or table without a line before
