"""Flags, `--config`, and errors as one line on stderr with exit code 2.

Only the standard library is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from mcanalysis.cli.console import answer_in_json, is_main_process
from mcanalysis.errors import shortened
from mcanalysis.settings import Flag, count_or_all
from mcanalysis.surroundings import be_deterministic, be_offline

__all__ = ["Parser", "comma_list", "count_or_all", "integers", "limits", "numbers", "pairs", "whole"]

Settings = TypeVar("Settings")


def _once(parser: Any, action: argparse.Action, values: Any, flag: str | None) -> None:
    """Remember what a flag was given; raises `UserError` where it was given something else before."""
    from mcanalysis.errors import UserError

    def shown(value: Any) -> str:
        if isinstance(value, dict):
            value = [f"{name}={number}" for name, number in value.items()]
        if isinstance(value, list):
            return ",".join(map(str, value))
        return "all" if value is None else str(value)

    before = parser.given.setdefault(action.dest, values)
    if before is not values and before != values:  # NaN is not equal to itself
        raise UserError(f"Expected {flag} once, got {shown(before)} and {shown(values)}; leave one out.")


class _Store(argparse._StoreAction):
    """A value, given once; the pairs of all flags together, over those of the configuration file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.type in (pairs, limits):
            given = parser.given.setdefault(self.dest, {})
            given |= _unique([*given.items(), *values], option_string)
            values = {**(parser.get_default(self.dest) or {}), **given}
        else:
            _once(parser, self, values, option_string)
        setattr(namespace, self.dest, values)


class _OnOff(argparse.BooleanOptionalAction):
    """`--flag` or `--no-flag`, not both."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        _once(parser, self, option_string, self.option_strings[0])
        super().__call__(parser, namespace, values, option_string)


class _Append(argparse._AppendAction):
    """All values of a flag that may be repeated, in place of those of the configuration file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = parser.given.setdefault(self.dest, [])
        given.append(values)
        setattr(namespace, self.dest, list(given))


class _ShowHelp(argparse._HelpAction):
    """`--help`, what a newcomer looks for, and `--help-all`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser._print_message(parser.format_help(everything=option_string == "--help-all"), sys.stdout)
        parser.exit()


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default in ({}, [])
        if isinstance(action.default, list) and not says_nothing:
            return f"{action.help} (default: {','.join(map(str, action.default))})"
        return action.help if says_nothing else super()._get_help_string(action)


def _settings_of(of: Any) -> dict[str, tuple[Flag, bool, dict[str, Any]]]:
    """By field of a settings class: its flag, whether it may be None, and the arguments of argparse."""
    found, hints = {}, get_type_hints(of, include_extras=True)
    for field in fields(of):
        if get_origin(hints[field.name]) is not Annotated:
            continue
        kind, *said = get_args(hints[field.name])
        if not isinstance(text := said[0], str):  # bounds alone
            continue
        flag = next((f for f in said if isinstance(f, Flag)), Flag())
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        arguments = {"type": flag.read} if flag.read else _reading(*(k for k in kinds if k is not NoneType))
        arguments |= {"metavar": flag.metavar} if flag.metavar else {}
        arguments |= {} if flag.bare is None else {"nargs": "?", "const": flag.bare}
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = list(default) if isinstance(default, tuple) else None if default is MISSING else default
        arguments |= {"default": default, "help": text.replace("%", "%%")}
        name = flag.name or field.name.replace("_", "-")
        found[field.name] = replace(flag, name=name), NoneType in kinds, arguments
    return found


def _reading(kind: Any, *or_else: Any) -> dict[str, Any]:
    """How argparse reads a value of a type, or of one of several."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is int and or_else == (Mapping[str, int],):
        return {"type": by_task, "metavar": "N|TASK=N"}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is Literal:
        return {"choices": parts, "type": type(parts[0])}
    for read, of in _LISTS.items():
        if kind == tuple[of, ...]:
            return {"type": read, "metavar": "A,B" if of is str else "N,M"}
    if origin is Mapping or origin is dict:
        return {"type": limits if parts[1] is int else pairs, "metavar": "NAME=VALUE"}
    if kind in (int, float, str):
        return {"type": kind} | ({} if kind is str else {"metavar": "N" if kind is int else "X"})
    raise TypeError(f"no flag reads {kind}; name what does: Flag(read=…)")


class Described(BaseException):
    """Carries a script's parser out of it, before it reads anything."""

    is_wanted = False

    def __init__(self, parser: Parser) -> None:
        self.parser = parser

    @classmethod
    def by(cls, script: Callable[[], object]) -> Parser:
        """The parser of a script, which goes no further than to make it."""
        cls.is_wanted = True
        try:
            script()
        except Described as described:
            return described.parser
        finally:
            cls.is_wanted = False
        raise TypeError("the script ended without a parser")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which reads `--config file.yaml` below the flags.

    `config`: whether there are `--config` and `--json`. `--help` shows the flags in `basic` alone: those of fields that
    are marked so, and what a script itself adds outside a `group`.
    """

    def __init__(self, description: str | None, *, config: bool = True) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False, add_help=False)
        self.basic: set[str] = set()  # by their names in the namespace
        self.given: dict[str, Any] = {}  # what the flags of one command line were given so far
        self._negative_number_matcher = re.compile(r"-\.?\d")  # as in Python 3.14: -0.5,1.5 is a value and no flag
        for name, action in (
            (None, _Store), ("store", _Store), ("append", _Append), (argparse.BooleanOptionalAction, _OnOff),
            ("help", _ShowHelp),
        ):  # fmt: skip
            self.register("action", name, action)
        self.set_defaults(config=None, json=False)
        options = self._optionals
        options.add_argument("-h", "--help", action="help", help="show what a newcomer looks for, and end")
        options.add_argument("--help-all", action="help", help="show every flag, and end")
        if config:
            options.add_argument("--config", metavar="FILE.yaml", help="settings by flag name; flags override them")
            options.add_argument(
                "--json", action="store_true", help="answer with one JSON document on stdout, not with text"
            )

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The flags under a heading of `--help`."""
        return next((g for g in self._action_groups if g.title == title), None) or self.add_argument_group(title)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        action = super().add_argument(*names, **settings)
        self.basic.add(action.dest)
        return action

    def format_help(self, everything: bool = True) -> str:
        """What `--help-all` prints, or `--help`: that ends with the headings and numbers of the flags left out."""
        if everything:
            return super().format_help()
        rest = [a for a in self._actions if a.option_strings and a.dest not in self.basic | {"help", "help_all"}]
        formatter = self._get_formatter()
        formatter.add_usage("%(prog)s [flags]", (), ())
        formatter.add_text(self.description)
        more = []
        for group in self._action_groups:
            shown = [a for a in group._group_actions if a not in rest and a.dest != "help_all"]
            formatter.start_section(group.title)
            formatter.add_arguments(shown)
            formatter.end_section()
            if left_out := sum(action in rest for action in group._group_actions):
                more.append(f"{group.title} {left_out}")
        formatter.add_text(f"more with --help-all: {', '.join(more)}" if more else None)
        return formatter.format_help()

    def add_settings(
        self,
        of: type,
        *,
        group: str | None = None,
        basic: bool = False,
        only: Collection[str] | None = None,
        leave_out: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a flag for each field of a settings class that is `Annotated[type, "help"]`, under a heading of `--help`.

        `mcanalysis.settings` says how a field is written. Types: int, float, str, bool (`--x` and `--no-x`), `Literal`,
        `tuple[X, ...]` (`A,B`), `Mapping[str, …]` (`A=x,B=y`), `int | Mapping[str, int]` (either), each or None. `only`
        these fields, in this order. `basic`: `--help` shows all of them where the class marks none. `defaults` in place
        of those of the class; None for a field that cannot be None: the class's is shown and taken, and the script sees
        that the flag was not given.
        """
        place, settings, defaults = self.group(group) if group else self, _settings_of(of), defaults or {}
        if unknown := {*(only or ()), *leave_out, *defaults} - set(settings):
            raise TypeError(f"{of.__name__} has no flag for {', '.join(sorted(unknown))}")
        chosen = [name for name in only or settings if name not in leave_out]
        basic = basic and not any(settings[name][0].basic for name in chosen)
        for field in chosen:
            flag, may_be_none, arguments = settings[field]
            if field in defaults:
                if defaults[field] is None and not may_be_none:
                    arguments["help"] += f" (default: {arguments['default']})"
                arguments["default"] = defaults[field]
            action = place.add_argument(f"--{flag.name}", **arguments)
            if basic or flag.basic:
                self.basic.add(action.dest)

    @staticmethod
    def settings(of: type[Settings], args: argparse.Namespace, **others: Any) -> Settings:
        """An object of a settings class with the values of the flags that there are.

        `others` are those of its other fields, or in place of a flag's; what is in neither is as the class has it. A
        flag counts by its name, whatever class it was added for.
        """
        given, values = vars(args), {}
        for field, (flag, may_be_none, _) in _settings_of(of).items():
            value = given.get(name := str(flag.name).replace("-", "_"))
            if name in given and (may_be_none or value is not None):
                values[field] = tuple(value) if isinstance(value, list) else value
        return of(**values | others)

    def error(self, message: str) -> NoReturn:
        self.exit(2, "" if not is_main_process() else f"error: {shortened(message, 600)}; see --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = {}
        return super().parse_known_args(args, namespace)

    def parse(self) -> argparse.Namespace:
        """Flags over the configuration file over defaults."""
        if Described.is_wanted:
            raise Described(self)
        first, unknown = self.parse_known_args()
        if unknown:
            self._refuse(unknown)
        if first.config:
            self.set_defaults(**self._read_config(first.config))
        args = self.parse_args()
        self._check_of_use(args)
        answer_in_json(args.json)
        for name, chosen in (("offline", be_offline), ("deterministic", be_deterministic)):
            if getattr(args, name, False):
                chosen()
        return args

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End with what no flag takes, and the flag that is likely meant."""
        from difflib import get_close_matches

        flag = unknown[0].partition("=")[0]
        close = get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)
        hint = f" (did you mean {close[0]}?)" if close else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")

    def _check_of_use(self, args: argparse.Namespace) -> None:
        """Raise `UserError` for what is given by name beside what does not look at it."""
        from mcanalysis.errors import UserError

        beside = next((f"--{name}" for name in ("run", "minima") if getattr(args, name, None)), None)
        for name in ("settings", "scores", "max_new_tokens"):
            if beside is None or not getattr(args, name, None) or (name == "max_new_tokens" and beside == "--minima"):
                continue
            flag = f"--{name.replace('_', '-')}"
            remedy = "name the score with --score" if (name, beside) == ("scores", "--minima") else "leave it out"
            raise UserError(f"Expected {flag} with runs that are to be trained, got it with {beside}; {remedy}.")
        if beside == "--run" and getattr(args, "chat_template", "auto") != "auto":
            raise UserError(
                "Expected --chat-template with runs that are to be trained or with --minima, got it with --run, whose "
                "runs keep theirs; leave it out."
            )

    def _read_config(self, file: str) -> dict[str, Any]:
        from mcanalysis.errors import UnknownNameError, UserError
        from mcanalysis.store.plain_yaml import read_plain

        values, tree = read_plain(file, "a YAML file", "check --config")
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise UserError(
                f"Expected settings by name in '{file}', got a {type(values).__name__}; write `flag: value`."
            )
        actions = {a.dest: a for a in self._actions if a.dest not in ("help", "help_all", "config")}
        for name in _written_twice(tree):
            raise UserError(f"Expected each setting once in '{file}', got {name} twice; leave one out.")
        settings = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in actions:
                raise UnknownNameError(f"setting in '{file}'", str(key), [n.replace("_", "-") for n in actions])
            try:
                settings[name] = _from_yaml(actions[name], value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                if isinstance(error, UserError):
                    raise
                reason = f" ({error})" if isinstance(error, argparse.ArgumentTypeError) else ""
                words: dict[Any, str] = {int: "a whole number", float: "a number", pairs: "a block of `name: value`"}
                words[by_task] = "a block of `task: number` or a whole number"
                raise UserError(
                    f"Expected {words.get(actions[name].type, 'another value')} for {key} in '{file}', got "
                    f"{value!r}{reason}; see --help."
                ) from None
        return settings


def _from_yaml(action: argparse.Action, value: Any) -> Any:
    """What a flag would have made of the value; raises `ValueError` or the like where it would have refused it."""
    kind = action.type
    if value is None:
        return action.default
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError(value)
        return value
    if isinstance(value, list):
        if not value or (kind not in _LISTS and not isinstance(action, argparse._AppendAction)):
            raise ValueError(value)
        return [_LISTS.get(kind, str)(str(v)) for v in value]
    if isinstance(value, dict):
        if kind is by_task and value:
            return by_task(",".join(f"{name}={number}" for name, number in value.items()))
        if kind not in (pairs, limits):
            raise ValueError(value)
        if kind is limits:
            return {str(k): int(str(v)) for k, v in value.items()}
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
    made = kind(str(value)) if callable(kind) else str(value)
    if kind in (pairs, limits):
        return _unique(made, action.dest)  # type: ignore[arg-type]
    if action.choices is not None and made not in action.choices:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(map(str, action.choices))}")
    return [made] if isinstance(action, argparse._AppendAction) else made


def _written_twice(tree: Any) -> list[str]:
    """Names that a YAML file or one of its blocks holds more than once; YAML itself takes the last."""
    import yaml

    if not isinstance(tree, yaml.MappingNode):
        return []
    entries = [(str(key.value).replace("-", "_"), value) for key, value in tree.value]
    blocks = [[name for name, _ in entries]]
    for name, value in entries:
        if isinstance(value, yaml.MappingNode):
            blocks.append([f"{name}.{key.value}" for key, _ in value.value])
    return [name for block in blocks for name in block if block.count(name) > 1]


def _unique(given: Iterable[tuple[str, Any]], flag: str | None) -> dict[str, Any]:
    """Pairs as a dictionary; raises `UserError` for a name with two values."""
    from mcanalysis.errors import UserError

    made: dict[str, Any] = {}
    for name, value in given:
        if made.setdefault(name, value) != value:
            raise UserError(f"Expected {name} once in {flag}, got {made[name]} and {value}; leave one out.")
    return made


def comma_list(text: str) -> list[str]:
    """`A,B,C` as a list; an empty one is refused."""
    parts = [part for part in (p.strip() for p in text.split(",")) if part]
    if not parts:
        raise argparse.ArgumentTypeError(f"expected A[,B,C], got '{text}'")
    return parts


def whole(low: int, high: int) -> Callable[[str], int]:
    """What reads a whole number in these bounds, for a flag that is of no settings class.

    >>> whole(1, 1024)("8")
    8
    """

    def read(text: str) -> int:
        try:
            if low <= (number := int(text)) <= high:
                return number
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected a whole number from {low:,} to {high:,}, got '{text}'")

    return read


def integers(text: str) -> list[int]:
    """`0,1,2` as a list of numbers."""
    return [int(part) for part in comma_list(text)]


def numbers(text: str) -> list[float]:
    """`0.5,1e-3` as a list of numbers."""
    return [float(part) for part in comma_list(text)]


_LISTS: dict[Any, Any] = {comma_list: str, integers: int, numbers: float}  # what reads a list of what


def pairs(text: str) -> list[tuple[str, str]]:
    """`A=x,B=y` as (name, value); the parser makes one dictionary of all flags of a kind."""
    entries = [part.partition("=") for part in comma_list(text)]
    if not all(name.strip() and equals for name, equals, _ in entries):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE[,NAME=VALUE], got '{text}'")
    return [(name.strip(), value.strip()) for name, _, value in entries]


def by_task(text: str) -> int | dict[str, int]:
    """`120` as a number for all tasks, `A=200,B=100` as one for each, by name."""
    entries = pairs(text) if "=" in text else [("", text)]
    try:
        counts = {name: int(number) for name, number in entries}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected N or TASK=N[,TASK=N], whole numbers, got '{text}'") from None
    if len(counts) < len(entries):
        raise argparse.ArgumentTypeError(f"expected each task once, got '{text}'")
    return counts.get("", counts)


def limits(text: str) -> list[tuple[str, int]]:
    """`A=64,B=256` as (name, number); a number alone is that of the task "", which stands for all."""
    try:
        return [(name, int(value)) for name, value in (pairs(text) if "=" in text else [("", text)])]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected N or TASK=N[,TASK=N], got '{text}'") from None
