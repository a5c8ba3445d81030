"""A hook of mkdocs: pages have an edit link only where the repository is known (mkdocs.yml)."""

from __future__ import annotations

from typing import Any


def on_pre_page(page: Any, *, config: Any, files: Any) -> Any:
    """Take the link away where it would lead nowhere."""
    del files
    if not config.repo_url:
        page.edit_url = None
    return page
