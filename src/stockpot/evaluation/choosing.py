"""Which data may decide."""

from __future__ import annotations

from stockpot.errors import SplitRoleError
from stockpot.models.task import Role, Task

__all__ = ["split_to_choose_on"]


def split_to_choose_on(task: Task, choose_on: str | None = None) -> str:
    """The name of the split that a recipe decides on.

    Raises:
        SplitRoleError: it is a test or shift split, there is none, or there are several and
            `choose_on` does not say which.
    """
    held_out = [name for name, split in task.splits.items() if split.role is Role.HELD_OUT]
    roles = ", ".join(f"{name} ({Role(split.role).value})" for name, split in task.splits.items())
    if choose_on is not None:
        if choose_on not in task.splits:
            raise SplitRoleError(f"the task has no split {choose_on!r}; it has {roles}")
        if choose_on not in held_out:
            raise SplitRoleError(
                f"choosing on {choose_on!r} would use data whose role is "
                f"{Role(task.splits[choose_on].role).value} and that reports the result; choose on "
                f"a held-out split (the task has {roles})"
            )
        return choose_on
    if len(held_out) == 1:
        return held_out[0]
    if len(held_out) == 0:
        raise SplitRoleError(
            f"the task has no held-out split to choose on, only {roles}; "
            'give one: splits={"val": Split(dataset, role="held-out"), …}'
        )
    raise SplitRoleError(
        f"the task has several held-out splits ({', '.join(held_out)}); "
        'say which one decides: choose_on="NAME" (--choose-on NAME)'
    )
