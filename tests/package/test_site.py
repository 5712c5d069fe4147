"""The documentation as a site, where MkDocs is installed: docs/build.py takes no warning."""

from __future__ import annotations

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
        tables = page.read_text(encoding="utf-8").count("\n| ---") + page.read_text().count("\n| |")
        assert ("<table>" in html) == (tables > 0), page
