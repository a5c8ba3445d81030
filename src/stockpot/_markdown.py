"""Text in Markdown that shows as it is, whatever it holds."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escape_markdown(text: str) -> str:
    """`text` so that Markdown shows it as it is: no markup, no HTML, no links, one line.

    >>> escape_markdown("run_01|*<b>") == r"run\\_01\\|\\*&lt;b&gt;"
    True
    >>> escape_markdown("[x](javascript:1) http://a")
    '\\\\[x\\\\](javascript:1) http&#58;//a'
    """
    text = html.escape(
        " ".join(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).split()), quote=False
    )
    text = re.sub(r"([\\`*_{}\[\]#|~!>])", r"\\\1", text)
    # These make plain text a link, and a leading mark makes it a list.
    text = text.replace("://", "&#58;//").replace("@", "&#64;").replace("www.", "www&#46;")
    return re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", text)
