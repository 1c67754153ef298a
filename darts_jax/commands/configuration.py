"""From the command line to a resolved, checked and frozen config; mistakes in one line.

The order: the file, the overrides, the preset, the checks. So an override may choose
the preset, and what is recorded in config.json holds every value that the run uses.
"""

import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_flags import config_flags

from darts_jax.commands import flags as command_flags
from darts_jax.commands.checks import (
    check_fields,
    check_names,
    check_overrides,
    check_precision,
    check_values,
)
from darts_jax.errors import UserError, unknown
from darts_jax.training.records import flatten

PRESETS: dict[str, dict[str, Any]] = {
    "code": {
        "weights.learning_rate_min": 0.001,
        "alphas.init_scale": 1e-3,
        "batch_norm.evaluation": "running",
        "batch_norm.stem_affine": True,
    },
    "paper": {
        "weights.learning_rate_min": 0.0,
        "alphas.init_scale": 0.0,
        "batch_norm.evaluation": "batch",
        "batch_norm.stem_affine": False,
    },
}
TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of names, such as \"('none','skip_connect')\"",
}


def load(
    argv: Sequence[str],
    command: str,
    flags: Mapping[str, str | bool | None] | None = None,
) -> tuple[FrozenConfigDict, Path, dict[str, str | bool | None]]:
    """Returns the frozen config, the run directory and the values of further flags.

    argv: what follows the command's name.
    flags: {name: default} of flags besides --config and --workdir.

    Raises:
        UserError: any mistake on the command line or in the file, in one line.
    """
    further = dict(flags or {})
    known = {"config": None, "workdir": None, **further}
    arguments = command_flags.parse(argv, known, overrides=True)
    source = arguments.flags["config"]
    if not source:
        raise UserError(
            f"{command} needs a config: --config=configs/{command}_digits.py"
        )
    path, _, arg = os.path.expanduser(str(source)).partition(":")
    given = arguments.flags["workdir"]
    config = load_file(Path(path), arg)
    apply_overrides(config, arguments.overrides)
    resolve_preset(config)
    flat = flatten(config.to_dict())
    check_fields(flat)
    check_values(flat)
    check_names(flat)
    check_overrides(command, arguments.overrides, flat)
    if command == "retrain" and not flat.get("genotype"):
        raise UserError(
            "retrain needs a genotype: --config.genotype=FILE.json, a name in the zoo "
            "(darts-jax zoo lists them) or random"
        )
    if command == "search":
        check_precision(flat)
    values = {name: arguments.flags[name] for name in further}
    # A dry run has no place of its own.
    workdir = Path() if values.get("dry-run") else check_workdir(given, command)
    return FrozenConfigDict(config), workdir, values


def load_file(path: Path, arg: str = "") -> ConfigDict:
    """Returns the locked config that `get_config(arg)` of the file at `path` makes.

    Raises:
        UserError: no such file, or the file or its `get_config` fails; with the line.
    """
    if not path.is_file():
        raise _no_such_file(path)
    try:
        with _siblings_importable(path.resolve().parent):
            config = (
                _execute(path).get_config(arg) if arg else _execute(path).get_config()
            )
    except UserError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise UserError(f"{where}: syntax error: {error.msg}") from error
    except Exception as error:
        raise UserError(_failure(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config() returned no ConfigDict but {config!r:.60}"
        )
    config.lock()
    return config


def _no_such_file(path: Path) -> UserError:
    if path.is_dir():
        return UserError(f"--config={path} is a folder; name one of the files in it")
    folder = path.parent
    names = [p.name for p in folder.glob("*.py") if p.stem != "base"]
    if not names:
        return UserError(f"no config {str(path)!r}, and no config in {str(folder)!r}")
    return unknown(f"config in {folder}", path.name, names)


def _execute(path: Path) -> ModuleType:
    """Runs the file as a module of its own that stays out of `sys.modules`."""
    loader = SourceFileLoader(f"darts_jax_config_{path.stem}", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f'{path} defines no get_config(arg="")')
    return module


@contextlib.contextmanager
def _siblings_importable(folder: Path) -> Iterator[None]:
    """Lets a config `import base` from its own folder, then forgets those modules.

    Forgets them, because another folder's `base` may be loaded next in this process.
    """
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = write_bytecode
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            if name not in before and origin and Path(origin).parent == folder:
                del sys.modules[name]


def _failure(path: Path, error: Exception) -> str:
    """One line for an exception raised by a config file: where, what."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = path.resolve().parent
    own = [f for f in frames if Path(f.filename).resolve().parent == folder]
    where = f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets `{"section.field": text}` in `config`, each text parsed as its field's type.

    Raises:
        UserError: an unknown field or a value that is not of the field's type.
    """
    fields = flatten(config.to_dict())
    for field, text in overrides.items():
        if field not in fields:
            raise _unknown_field(field, fields)
        values = absl_flags.FlagValues()
        words = ["darts-jax", f"--config.{field}={text}"]
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=words
        )
        try:
            values(words)
        except (absl_flags.Error, TypeError, ValueError) as error:
            section, _, name = field.rpartition(".")
            owner = config[section] if section else config
            kind = TYPE_WORDS.get(owner.get_type(name), "another type")
            raise UserError(f"--config.{field}={text}: expected {kind}") from error


def _unknown_field(field: str, fields: Mapping[str, Any]) -> UserError:
    """Suggests the nearest field, by its whole name or in whatever section it is."""
    sections = {f.rpartition(".")[0] for f in fields} - {""}
    if field in sections:
        inside = [f for f in fields if f.startswith(field + ".")]
        return UserError(
            f"config.{field} is a section; its fields: {', '.join(inside)}"
        )
    section, _, name = field.rpartition(".")
    names = {f.rpartition(".")[2] for f in fields}
    close = set(difflib.get_close_matches(name, names, n=1))
    near = [f for f in fields if f.rpartition(".")[2] in close]
    near = [f for f in near if f.rpartition(".")[0] == section] or near
    if near:
        return UserError(
            f"unknown config field {field!r}; did you mean {' or '.join(near)}?"
        )
    if section in sections:
        return unknown("config field", field, [f for f in fields if section in f])
    top = [f for f in fields if "." not in f] + [f"{s}.*" for s in sections]
    return unknown("config field", field, top)


def resolve_preset(config: ConfigDict) -> None:
    """Gives each field that is still open the value of `config.preset`."""
    if "preset" not in config:
        return
    if config.preset not in PRESETS:
        raise unknown("config.preset", config.preset, PRESETS)
    for field, value in PRESETS[config.preset].items():
        section, _, name = field.partition(".")
        if section in config and config[section].get(name) is None:
            config[section][name] = value


def check_workdir(workdir: str | bool | None, command: str) -> Path:
    """Returns the run directory's path; nothing is created yet.

    Raises:
        UserError: none given, or it is or lies in something that cannot be written to.
    """
    if not workdir:
        raise UserError(f"{command} needs a run directory: --workdir=runs/NAME")
    path = Path(str(workdir)).expanduser()
    existing = next(
        p for p in (path.absolute(), *path.absolute().parents) if p.exists()
    )
    if not existing.is_dir():
        raise UserError(f"--workdir={workdir}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: {existing} is not writable")
    return path
