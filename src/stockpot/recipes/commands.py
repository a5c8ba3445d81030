"""The commands of recipes, for the list that `stockpot --help` shows: it imports no recipe.

A recipe that declares `command` has a line here; a test holds the two together.
"""

from __future__ import annotations

from types import MappingProxyType

COMMANDS = MappingProxyType(
    {
        "average": ("Uniform", "Average checkpoints: the uniform soup, or a weighted one."),
        "interpolate": ("WiseFT", "Mix a base with its fine-tuned child (WiSE-FT)."),
        "greedy": ("Greedy", "Greedy soup: add what does not lower the held-out score."),
        "pruned": ("Pruned", "Pruned soup: take out what the held-out score does not miss."),
        "learned": ("Learned", "Learned soup: fit the mixing coefficients on held-out data."),
        "arithmetic": (
            "TaskArithmetic",
            "Task arithmetic: add task vectors, or merge them (TIES, …).",
        ),
        "model-stock": (
            "ModelStock",
            "Model Stock: from base to mean as far as the moves agree.",
        ),
        "slerp": ("Slerp", "SLERP: spherical interpolation, or mean, of checkpoints."),
        "soce": ("SoCE", "Soup of category experts (SoCE): the best of each, weighted."),
        "auto": ("Auto", "Try every recipe and keep the simplest of the best."),
        "trajectory": ("Trajectory", "Average the best window of one run's checkpoints."),
    }
)
"""Command → the recipe's name in `stockpot.recipes`, and its summary."""
