"""Commands from functions whose parameters are groups of options.

    def average(inputs: Inputs, recipe: Uniform, scoring: Scoring, saving: Saving) -> None:
        '''Average checkpoints …'''

Each parameter is a frozen dataclass with fields from `stockpot._options.option`. `command` makes a
click command with the options of all groups and calls the function with the groups filled; its
help has a section for each group. click alone rather than typer: typer has no groups, and costs
twenty milliseconds more at every start.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

import click

from stockpot._options import Option, numbers, options_of

Groups: TypeAlias = Mapping[str, type]


def _metavar(argument: click.Argument, ctx: click.Context) -> str:
    try:
        return argument.make_metavar(ctx)
    except TypeError:  # click before 8.2
        return argument.make_metavar()  # type: ignore[call-arg]


class GroupedCommand(click.Command):
    """A command whose help shows its options by group: (heading, parameters) in `sections`."""

    sections: tuple[tuple[str, list[click.Parameter]], ...] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Arguments first, then the options of each group, with --help among the last."""
        arguments = [one for one in self.params if isinstance(one, _Argument)]
        _section(formatter, "Arguments", [(_metavar(one, ctx), one.text) for one in arguments])
        for heading, parameters in self.sections:
            records = [one.get_help_record(ctx) for one in parameters]
            if heading == self.sections[-1][0]:
                own = self.get_help_option(ctx)
                records.append(None if own is None else own.get_help_record(ctx))
            _section(formatter, heading, [record for record in records if record is not None])


def _section(formatter: click.HelpFormatter, heading: str, records: list[tuple[str, str]]) -> None:
    if records:
        with formatter.section(heading):
            formatter.write_dl(records)


class _Argument(click.Argument):
    """An argument that explains itself in the help."""

    def __init__(self, *args: Any, help: str, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.text = help


def command(
    name: str, function: Callable[..., None], groups: Groups, *, help: str | None = None
) -> click.Command:
    """The click command `name` that fills `groups` (parameter → dataclass) and calls `function`.

    An option that two groups declare with the same flags and default is one option, whose value
    both get: the seed of a recipe and of what scores it. Other options with a flag in common are a
    defect.

    Args:
        name: of the command.
        function: takes a filled group for each parameter.
        groups: dataclass of each parameter, in the order of the help.
        help: text above the options; None means the docstring of `function`.

    Raises:
        ValueError: two groups declare one flag in different ways.
    """
    options = _Options(name)
    sections = [(_heading(cls), options.of_group(group, cls)) for group, cls in groups.items()]

    def run(**given: Any) -> None:
        values = options.collected(given)
        function(**{group: options.filled(group, cls, values) for group, cls in groups.items()})

    parameters = [one for _, section in sections for one in section]
    made = GroupedCommand(
        name,
        callback=run,
        params=parameters,
        help=help if help is not None else function.__doc__,
        no_args_is_help=any(one.required for one in parameters),
    )
    made.sections = tuple(
        (heading, [one for one in section if isinstance(one, click.Option)])
        for heading, section in sections
    )
    return made


class _Options:
    """The options of a command: each under the name by which click knows it."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.names: dict[tuple[str, str], str] = {}
        self._known: dict[str, tuple[Option, Any]] = {}
        self._owner: dict[str, str] = {}

    def of_group(self, group: str, cls: type) -> list[click.Parameter]:
        """The parameters that no group before this one has."""
        made = []
        for item, about in options_of(cls):
            flags, default = about.flags_of(item.name), _default(item)
            taken = {self._owner[flag] for flag in flags if flag in self._owner}
            if taken:
                name = taken.pop()
                known, other = self._known[name]
                if known.flags_of(item.name) != flags or other != default:
                    raise ValueError(f"{self.command}: two options are called {flags[-1]}")
                self.names[group, item.name] = name
                continue
            name = item.name if item.name not in self._known else f"{group}_{item.name}"
            self.names[group, item.name] = name
            self._known[name] = about, default
            self._owner |= dict.fromkeys(flags, name)
            made.append(_parameter(item, cls, about, name))
        return made

    def filled(self, group: str, cls: type, values: Mapping[str, Any]) -> Any:
        """The group with its options' `values`."""
        own = {item.name: about for item, about in options_of(cls)}
        mine = {name: values[self.names[group, name]] for name in own}
        given = {name for name, value in mine.items() if value not in (None, False, (), {})}
        flags = {name: own[name].flags_of(name)[-1] for name in own}
        for name in given:
            needs, excludes = own[name].needs, own[name].excludes
            if needs is not None and needs not in given:
                raise click.UsageError(f"{flags[name]} means nothing without {flags[needs]}")
            if excludes in given:
                both = f"{flags[name]} and {flags[str(excludes)]}"
                raise click.UsageError(f"{both} exclude each other: give one of them")
        return cls(**mine)

    def collected(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of options by name; those of one given several times as its field has them."""
        return {
            name: value if about.many is None else about.many(value)
            for name, value in given.items()
            for about, _ in [self._known[name]]
        }


def _heading(cls: type) -> str:
    """What the group is called in the help: its `heading`, or its name in words."""
    first, *others = re.split(r"(?<=[a-z])(?=[A-Z][a-z])", cls.__name__)
    heading: str = getattr(cls, "heading", " ".join([first, *map(str.lower, others)]))
    return heading


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _parameter(item: Field[Any], cls: type, about: Option, name: str) -> click.Parameter:
    hint = None if about.parse is not None else _hint(cls, item.name)
    kind, many = _kind(hint, about)
    default = _default(item)
    required = default is MISSING
    if about.positional:
        return _Argument(
            [name], metavar=about.metavar, type=kind, required=required,
            nargs=-1 if many else 1, help=about.help,
        )  # fmt: skip
    flags = about.flags_of(item.name)
    is_flag = hint is bool
    if is_flag and default is True:
        flags = tuple(f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags)
    if many and not required:
        default = tuple(default)
    shown: Any = not required and not is_flag and default not in (None, ())
    if shown and isinstance(default, tuple):
        shown = ",".join(one if isinstance(one, str) else f"{one:g}" for one in default)
    defaults = {} if required else {"default": default}
    return click.Option(
        [*flags, name],
        help=about.help,
        metavar=about.metavar,
        type=None if is_flag else kind,
        is_flag=is_flag,
        multiple=many,
        required=required,
        show_default=shown,
        **defaults,
    )


def _hint(cls: type, name: str) -> Any:
    """The type of the field `name`; of no other, which may name what only type checkers import."""
    for base in cls.__mro__:
        given = inspect.get_annotations(base).get(name)
        if given is not None:
            scope = vars(sys.modules[base.__module__])
            # An annotation that this program or a named recipe wrote: code already, never a file's.
            return eval(given, dict(scope)) if isinstance(given, str) else given
    raise TypeError(f"{cls.__name__} has no field {name}")


def _kind(hint: Any, about: Option) -> tuple[click.ParamType[Any] | None, bool]:
    """How a value of the type `hint` is read, and whether the option may be given again."""
    if about.parse is not None:
        return _Parsed(about.parse), about.many is not None
    arguments = [part for part in get_args(hint) if part is not types.NoneType]
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = arguments
        arguments = list(get_args(hint))
    if get_origin(hint) is tuple:
        if arguments[0] in (int, float):
            return _Parsed(lambda text: numbers(text, arguments[0])), False
        return _scalar(arguments[0], about), True
    return _scalar(hint, about), False


def _scalar(hint: Any, about: Option) -> click.ParamType[Any]:
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if hint is int:
        return click.INT if about.minimum is None else click.IntRange(min=int(about.minimum))
    if hint is float:
        return click.FLOAT if about.minimum is None else click.FloatRange(min=about.minimum)
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


Lazy: TypeAlias = Mapping[str, tuple[str, Callable[[], click.Command]]]
"""Name of a command → its line in the list, and what makes it."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used.

    `--help` of the group shows a line for each and imports no command.
    """

    def __init__(self, *args: Any, lazy: Lazy, **kw: Any):
        super().__init__(*args, **kw)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of declaration."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, made now."""
        found = self.lazy.get(cmd_name)
        return None if found is None else found[1]()

    def lines(self) -> Iterator[tuple[str, str]]:
        """Each command's name and line."""
        return ((name, line) for name, (line, _) in self.lazy.items())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line each, without importing them."""
        _section(formatter, "Commands", list(self.lines()))
