"""A hook of mkdocs: pages have an edit link only where the repository is known (mkdocs.yml)."""

from __future__ import annotations

from typing import Any


def on_config(config: Any) -> Any:
    """Take the links away where they would lead nowhere."""
    if not config.repo_url:
        config.edit_uri = None
    return config
