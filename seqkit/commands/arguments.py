"""From the command line and YAML to frozen dataclasses, with jsonargparse.

Later sources win: dataclass defaults, the task's YAML in ``configs/task``, ``--config`` files in order, ``--set``-like
dotted keys and their flat aliases.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser

from seqkit import configs
from seqkit.errors import ConfigError

UNKNOWN_KEY = re.compile(r"unrecognized arguments: --(?P<flag>[^\s=]+)|does not accept option '(?P<key>[^']+)'")


def parse(
    prog: str,
    config_class: type,
    argv: Sequence[str],
    *,
    aliases: Mapping[str, str] | None = None,
    defaults: Path | None = None,
    flags: Sequence[str] = (),
    options: Sequence[str] = (),
) -> tuple[Any, dict[str, Any], str]:
    """Parse a verb's arguments into its config.

    Args:
        prog: Program and verb, for the usage line.
        config_class: Frozen dataclass; nested dataclasses become dotted keys.
        argv: Arguments after the verb.
        aliases: Flat name to dotted key, both without dashes (``fasta`` to ``data.fasta``).
        defaults: YAML file read before everything else.
        flags: Names of switches that belong to the command, not to the config (``resume``).
        options: Names of options with a value that belong to the command (``out``).

    Returns:
        The config, the command's own switches and options (None when absent), and the resolved config as YAML.

    Raises:
        ConfigError: Unknown key, wrong type, alias and dotted key both given.
        SystemExit: After ``--help`` or ``--print-config``.
    """
    argv, own = split_own(argv, flags, options)
    aliases = dict(aliases or {})
    argv = expand_aliases(argv, aliases)
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        default_config_files=[str(defaults)] if defaults else [],
        epilog=help_epilog(aliases, flags, options),
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the keys below.")
    parser.add_class_arguments(config_class)
    keys = {action.dest for action in parser._actions if action.dest != "help"}
    flat = {*aliases, *flags, *options}
    try:
        namespace = parser.parse_args(argv)
        namespace.pop("config", None)
        namespace.pop("__default_config__", None)
        resolved = parser.dump(namespace, skip_unset=False)
        values = parser.instantiate(namespace)
        config = config_class(**{key: values[key] for key in config_class.__dataclass_fields__})
    except ConfigError:
        raise
    except Exception as error:
        raise readable(error, keys, flat, prog) from error
    return config, own, resolved


def model_presets(argv: Sequence[str]) -> list[str]:
    """Replace ``--model NAME`` by the path of the shipped preset; a path stays."""
    out = list(argv)
    for position, argument in enumerate(out):
        name, equals, value = argument.partition("=")
        if name != "--model":
            continue
        at = position if equals else position + 1
        value = value if equals else out[at] if at < len(out) else ""
        if not Path(value).is_file():
            path = str(configs.path("model", value))
            out[at] = f"--model={path}" if equals else path
    return out


def split_own(argv: Sequence[str], flags: Sequence[str], options: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take the command's own switches (``--resume``) and options (``--out DIR``) out of the arguments."""
    own: dict[str, Any] = {**dict.fromkeys(flags, False), **dict.fromkeys(options)}
    rest: list[str] = []
    remaining = iter(argv)
    for argument in remaining:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in flags:
            own[name] = True
        elif argument.startswith("--") and name in options:
            own[name] = value if equals else next(remaining, None)
            if own[name] is None:
                raise ConfigError(f"--{name}", expected="a value", got="none")
        else:
            rest.append("--print_config" if argument == "--print-config" else argument)
    return rest, own


def expand_aliases(argv: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Replace flat names by dotted keys; the same key given under both names is an error."""
    out, seen = [], {}
    for argument in argv:
        name, equals, value = argument.partition("=")
        key = aliases.get(name[2:]) if name.startswith("--") else None
        if name.startswith("--") and "." in name:
            name = "--" + name[2:].replace("-", "_")  # flags are written with hyphens, YAML keys with underscores
        canonical = f"--{key}" if key else name
        if canonical.startswith("--"):
            if seen.setdefault(canonical, name) != name:
                raise ConfigError(
                    name,
                    expected=f"one name for {canonical[2:]}",
                    got=f"{seen[canonical]} and {name}",
                    remedy="Drop one.",
                )
            argument = canonical + equals + value
        out.append(argument)
    return out


def help_epilog(aliases: Mapping[str, str], flags: Sequence[str], options: Sequence[str]) -> str:
    """Aliases, switches and options for the end of ``--help``."""
    short = ", ".join(f"--{flat} = --{dotted}" for flat, dotted in aliases.items())
    own = ", ".join([f"--{name} VALUE" for name in options] + [f"--{name}" for name in flags])
    return f"short names: {short}. This command's own: {own}."


def readable(error: Exception, keys: set[str], flat: set[str], prog: str) -> ConfigError:
    """Turn a parser's error into one line that names the nearest key."""
    text = " ".join(str(error).split())
    match = UNKNOWN_KEY.search(text)
    if match is None:
        return ConfigError("arguments", expected="valid settings", got=text.rstrip("."), remedy=f"See {prog} --help.")
    name = match.group("flag") or match.group("key")
    flag = match.group("flag") is not None
    return unknown_key(name, keys | flat if flag else keys, prefix="--" if flag else "")


def unknown_key(name: str, known: set[str], prefix: str = "--") -> ConfigError:
    """Error for a key that does not exist, naming the nearest one that does."""
    leaves = {key.rsplit(".", 1)[-1]: key for key in sorted(known, reverse=True)}
    pool = [*known, *leaves]
    near = difflib.get_close_matches(name, pool, n=1, cutoff=0.5)
    nearest = (near[0] if near[0] in known else leaves[near[0]]) if near else None
    remedy = f"Did you mean {prefix}{nearest}?" if nearest else "See --print-config for all keys."
    return ConfigError(prefix + name, expected="a known key", got="an unknown one", remedy=remedy)
