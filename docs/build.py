"""Builds the documentation as a site: python docs/build.py [FOLDER], by default build/docs.

Pages link to each other and to sources as they lie in the project, so that the links work on
GitHub, too. MkDocs wants all of it in a folder of its own: it is copied there first.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parent.parent
COPIED = (  # pages, and what they show or link to
    *("*.md", "docs/*.md", "bench/*.md", "bench/results/*/*.md", "bench/results/*/*.png"),
    *("examples/*.py", "salsa_fused/*.py", "salsa_fused/kernels/backends/*.py"),
    *("salsa_fused/kernels/*.py", "csrc/*.h", "tests/ptx/__init__.py"),
)


def copy_pages(folder: Path) -> None:
    """Copy them into an empty folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in (path for pattern in COPIED for path in ROOT.glob(pattern)):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def main(site: Path) -> None:
    """Build the site; a warning, such as a link that leads nowhere, is an error."""
    source = site.with_name(f"{site.name}-source")
    copy_pages(source)
    config = load_config(
        str(ROOT / "docs" / "mkdocs.yml"), docs_dir=str(source), site_dir=str(site), strict=True
    )
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()
    print(f"Built {site / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT / "build" / "docs")
