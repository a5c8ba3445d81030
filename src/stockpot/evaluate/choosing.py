"""Which data may decide."""

from __future__ import annotations

from stockpot.errors import SplitRoleError
from stockpot.evaluate.task import Role, Task
from stockpot.evaluate.view import with_splits


def split_to_choose_on(
    task: Task, choose_on: str | None = None, *, besides: str | None = None
) -> str:
    """The name of the split that a recipe decides on.

    Args:
        task: has the splits.
        choose_on: the one to take, where there are several.
        besides: a held-out split that has another part in the choice, and cannot be this one.

    Raises:
        SplitRoleError: it is a test or shift split, there is none, or there are several and
            `choose_on` does not say which.
    """
    if besides is not None:
        split_to_choose_on(task, besides)
        if choose_on == besides:
            raise SplitRoleError(
                f"{choose_on!r} would both fit and decide; give two held-out splits, or leave "
                "decide_on (--decide-on) out to divide one"
            )
        if choose_on is None:
            rest = {name: split for name, split in task.splits.items() if name != besides}
            return split_to_choose_on(with_splits(task, rest))
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
