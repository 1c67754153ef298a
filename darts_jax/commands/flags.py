"""The command line after the command's name: flags, arguments and config overrides.

absl's own parser is used for the overrides' values only: its errors for an unknown or a
missing flag are several lines or a traceback, and its flags are global to the process.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from darts_jax.errors import UserError, unknown

TRUE = frozenset({"true", "1", "yes"})
FALSE = frozenset({"false", "0", "no"})


class Arguments(NamedTuple):
    """A parsed command line."""

    flags: dict[str, str | bool | None]
    positional: list[str]
    overrides: dict[str, str]  # {"weights.learning_rate": "0.05"}, the last one wins


def parse(
    argv: Sequence[str],
    flags: Mapping[str, str | bool | None],
    *,
    positional: str = "",
    overrides: bool = False,
) -> Arguments:
    """Splits `argv` into flags, positional arguments and config overrides.

    flags: {name: default}; a bool default makes a switch: `--name`, `--noname`.
    positional: what a positional argument is called; empty where none is allowed.
    overrides: whether `--config.FIELD=VALUE` is allowed.

    Raises:
        UserError: an unknown flag, a flag without its value, an argument too many.
    """
    values = dict(flags)
    words: list[str] = []
    changed: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            if not positional:
                raise UserError(f"unexpected argument {word!r}; flags are --name=value")
            words.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        given = value if equals else None
        if overrides and name.startswith("config."):
            changed[name.removeprefix("config.")] = _value(name, given, rest)
        elif overrides and name.startswith("noconfig.") and given is None:
            changed[name.removeprefix("noconfig.")] = "false"
        elif isinstance(flags.get(name), bool):
            values[name] = _switch(name, given)
        elif name in flags:
            values[name] = _value(name, given, rest)
        elif name.startswith("no") and isinstance(flags.get(name[2:]), bool):
            values[name[2:]] = False
        else:
            choices = [f"--{flag}" for flag in flags]
            if overrides:
                choices.append("--config.FIELD")
            raise unknown("flag", f"--{name}", choices or ["(none)"])
    return Arguments(values, words, changed)


def _value(name: str, given: str | None, rest: list[str]) -> str:
    """Returns the flag's value, which may be the next word of `rest`."""
    if given is None:
        if not rest or rest[0].startswith("--"):
            raise UserError(f"--{name} needs a value: --{name}=VALUE")
        given = rest.pop(0)
    return given


def _switch(name: str, given: str | None) -> bool:
    """Returns the value of a switch, which is on where it has none."""
    if given is None or given.lower() in TRUE:
        return True
    if given.lower() in FALSE:
        return False
    raise UserError(f"--{name}={given}: expected true or false")
