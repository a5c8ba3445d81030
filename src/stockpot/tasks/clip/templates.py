"""The sentences in which a class is named, and the names of classes, as text files hold them."""

from __future__ import annotations

from collections.abc import Iterable

from stockpot._records import read_regular
from stockpot._types import StrPath
from stockpot.errors import TaskError

# Nearly all sentences come in two: "a photo of a …" and "a photo of the …".
_PAIRED = (
    "a photo of {article} {}.", "a good photo of {article} {}.", "a bad photo of {article} {}.",
    "a bright photo of {article} {}.", "a dark photo of {article} {}.",
    "a blurry photo of {article} {}.", "a cropped photo of {article} {}.",
    "a close-up photo of {article} {}.", "a pixelated photo of {article} {}.",
    "a low resolution photo of {article} {}.", "a jpeg corrupted photo of {article} {}.",
    "a black and white photo of {article} {}.", "a photo of {article} clean {}.",
    "a photo of {article} dirty {}.", "a photo of {article} nice {}.",
    "a photo of {article} cool {}.", "a photo of {article} weird {}.",
    "a photo of {article} large {}.", "a photo of {article} small {}.",
    "a photo of {article} hard to see {}.", "itap of {article} {}.", "art of {article} {}.",
    "a drawing of {article} {}.", "a sketch of {article} {}.", "a doodle of {article} {}.",
    "a painting of {article} {}.", "a rendering of {article} {}.", "a rendition of {article} {}.",
    "a sculpture of {article} {}.", "a tattoo of {article} {}.", "graffiti of {article} {}.",
    "{article} cartoon {}.", "{article} origami {}.", "{article} embroidered {}.",
    "{article} plastic {}.", "{article} plushie {}.", "{article} toy {}.",
    "{article} {} in a video game.",
)  # fmt: skip
_SINGLE = ("a photo of one {}.", "a photo of many {}.", "a photo of my {}.", "itap of my {}.")

IMAGENET_TEMPLATES = (
    *(text.replace("{article}", article) for text in _PAIRED for article in ("a", "the")),
    *_SINGLE,
)
"""The 80 sentences used for ImageNet since CLIP (Radford et al. 2021, arXiv 2103.00020).

"itap" is "I took a picture". Their order does not matter: their features are averaged.
"""


def read_classes(path: StrPath) -> tuple[str, ...]:
    """Class names by index, one on each line; empty lines and lines that begin with # are skipped.

    Raises:
        TaskError: there is no such file, fewer than two names, or a name that stands twice.
    """
    names = _lines(path)
    _refuse(str(path), class_problems(names))
    return names


def read_templates(path: StrPath) -> tuple[str, ...]:
    """Sentences with `{}` where the class goes, one on each line, as `read_classes` reads them.

    Raises:
        TaskError: there is no such file, no sentence, or a sentence without exactly one `{}`.
    """
    templates = _lines(path)
    _refuse(str(path), template_problems(templates))
    return templates


def class_problems(names: Iterable[str]) -> list[str]:
    """What keeps `names` from being classes.

    >>> class_problems(["cat", "dog", "cat"])
    ["the class 'cat' is named twice; write the two so that they differ"]
    """
    given = list(names)
    problems = [
        f"the class {name!r} is named twice; write the two so that they differ"
        for name in dict.fromkeys(given)
        if given.count(name) > 1
    ]
    if any(not name.strip() for name in given):
        problems.append("a class has no name")
    if len(given) < 2:
        problems.append(f"{len(given)} classes, expected two or more")
    return problems


def template_problems(templates: Iterable[str]) -> list[str]:
    """What keeps `templates` from being sentences about a class.

    >>> template_problems(["a photo of a {}.", "a cat"])
    ["the template 'a cat' holds 0 {}; expected one, where the name of the class goes"]
    """
    given = list(templates)
    problems = [
        f"the template {text!r} holds {text.count('{}')} {{}}; expected one, where the name of the "
        "class goes"
        for text in given
        if text.count("{}") != 1
    ]
    return problems or ([] if given else ["there is no template"])


def _lines(path: StrPath) -> tuple[str, ...]:
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TaskError(f"{path} cannot be read: {reason}") from error
    lines = [line.strip() for line in text.splitlines()]
    return tuple(line for line in lines if line and not line.startswith("#"))


def _refuse(where: str, problems: list[str]) -> None:
    if problems:
        raise TaskError("\n".join(f"{where}: {problem}" for problem in problems), problems)
