"""Links of all pages lead to a file, and to a heading in it; on GitHub and on the site alike."""

from __future__ import annotations

import re

import pytest
from pages import ALL, PAGES, ROOT, headings_of, links_of, name_of, slug_of, slug_on_site

DOCS = [page for page in PAGES if page.parent.name == "docs"]


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_lead_somewhere(page):
    for link in links_of(page):
        target = (page.parent / link.path).resolve() if link.path else page
        assert target.exists(), link
        if link.anchor:
            slugs = {slug_of(heading): heading for heading in headings_of(target)}
            assert link.anchor in slugs, (link, sorted(slugs))
            assert slug_on_site(slugs[link.anchor]) == link.anchor, link


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_headings_are_different(page):
    slugs = [slug_of(heading) for heading in headings_of(page)]
    assert len(slugs) == len(set(slugs))


def test_a_link_that_leads_nowhere_would_be_found():
    assert sum(len(links_of(page)) for page in ALL) > 150
    assert slug_of("Why is `lr` printed as 1?") == "why-is-lr-printed-as-1"
    assert slug_of("a / b") != slug_on_site("a / b")


def test_every_page_is_reached_from_the_index_and_is_in_the_navigation():
    index = {link.path for link in links_of(ROOT / "docs" / "README.md")}
    navigation = (ROOT / "docs" / "mkdocs.yml").read_text()
    assert len(DOCS) >= 14
    for page in DOCS:
        assert page.name in index | {"README.md"}, page
        assert f"docs/{page.name}" in navigation, page


def test_newcomers_questions_have_a_thread_and_an_answer():
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    link = r"\[[^|]+\]\((\S+)\)"
    rows = re.findall(rf"^\| (\d+) \| ([^|]+) \| {link} \| {link} \|$", text, re.M)
    assert [int(number) for number, *_ in rows] == [*range(1, len(rows) + 1)]
    assert len(rows) >= 30 and len({thread for _, _, thread, _ in rows}) == len(rows)
    for _, question, thread, answer in rows:
        assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", thread)
        assert question.endswith("?") and "#" in answer


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
