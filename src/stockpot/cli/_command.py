"""Commands from functions whose parameters are groups of options.

    def average(inputs: Inputs, recipe: Uniform, scoring: Scoring, saving: Saving) -> None:
        '''Average checkpoints …'''

Each parameter is a frozen dataclass with fields from `stockpot._options.option`. `command` makes a
click command with the options of all groups, in the order of the parameters, and calls the function
with the groups filled. click alone rather than typer: typer has no groups, and costs twenty
milliseconds more at every start.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, Field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from stockpot._options import Option, options_of

Groups = dict[str, type]


def command(
    name: str, function: Callable[..., None], groups: Groups, *, help: str | None = None
) -> click.Command:
    """The click command `name` that fills `groups` (parameter → dataclass) and calls `function`.

    Two groups must not declare options of the same name: that is a defect, and a ValueError.
    """
    parameters: list[click.Parameter] = []
    owners: dict[str, tuple[str, str]] = {}
    for group, cls in groups.items():
        hints = get_type_hints(cls)
        for item, about in options_of(cls):
            if item.name in owners:
                raise ValueError(f"{name}: two options are called {item.name}")
            owners[item.name] = (group, item.name)
            parameters.append(_parameter(item, hints[item.name], about))

    def run(**values: Any) -> None:
        filled: dict[str, dict[str, Any]] = {group: {} for group in groups}
        for key, value in values.items():
            group, attribute = owners[key]
            filled[group][attribute] = value
        function(**{group: groups[group](**given) for group, given in filled.items()})

    return click.Command(
        name,
        callback=run,
        params=parameters,
        help=help if help is not None else function.__doc__,
        no_args_is_help=any(parameter.required for parameter in parameters),
    )


def _parameter(item: Field[Any], hint: Any, about: Option) -> click.Parameter:
    kind, many = _kind(hint, about)
    required = item.default is MISSING and item.default_factory is MISSING
    if about.positional:
        return click.Argument(
            [item.name], metavar=about.metavar, type=kind, required=required,
            nargs=-1 if many else 1,
        )  # fmt: skip
    default = None if required else item.default
    flags = about.flags_of(item.name)
    is_flag = hint is bool
    if is_flag and default is True:
        flags = tuple(f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags)
    return click.Option(
        [*flags, item.name],
        help=about.help,
        metavar=about.metavar,
        type=None if is_flag else kind,
        is_flag=is_flag,
        multiple=many,
        default=default,
        required=required,
        show_default=default not in (None, False, ()),
    )


def _kind(hint: Any, about: Option) -> tuple[click.ParamType[Any] | None, bool]:
    """How a value of the type `hint` is read, and whether there may be several."""
    if about.parse is not None:
        return _Parsed(about.parse), False
    arguments = [part for part in get_args(hint) if part is not types.NoneType]
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = arguments
        arguments = list(get_args(hint))
    if get_origin(hint) is tuple:
        return _scalar(arguments[0], about), True
    return _scalar(hint, about), False


def _scalar(hint: Any, about: Option) -> click.ParamType[Any]:
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if hint is int:
        return click.IntRange(min=None if about.minimum is None else int(about.minimum))
    if hint is float:
        return click.FloatRange(min=about.minimum)
    if hint is str:
        return click.STRING
    if hint is bool:
        return click.BOOL
    raise TypeError(f"no option can have the type {hint}; give parse=")


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # not generic in older versions
    """A value that a function of our own reads; its ValueErrors are wrong usage."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of what was typed; defaults are values already."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used: name → (one line, how to make it).

    `--help` of the group shows the lines and imports no command.
    """

    def __init__(
        self, *args: Any, lazy: dict[str, tuple[str, Callable[[], click.Command]]], **kw: Any
    ):
        super().__init__(*args, **kw)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of declaration."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, made now."""
        found = self.lazy.get(cmd_name)
        return None if found is None else found[1]()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line each, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (line, _) in self.lazy.items()])
