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
) -> tuple[Any, dict[str, bool], str]:
    """Parse a verb's arguments into its config.

    Args:
        prog: Program and verb, for the usage line.
        config_class: Frozen dataclass; nested dataclasses become dotted keys.
        argv: Arguments after the verb.
        aliases: Flat name to dotted key, both without dashes (``fasta`` to ``data.fasta``).
        defaults: YAML file read before everything else.
        flags: Names of switches that belong to the command, not to the config (``resume``).

    Returns:
        The config, the switches, and the resolved config as YAML.

    Raises:
        ConfigError: Unknown key, wrong type, alias and dotted key both given.
        SystemExit: After ``--help`` or ``--print-config``.
    """
    argv, switches = split_switches(argv, flags)
    aliases = dict(aliases or {})
    argv = expand_aliases(argv, aliases)
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        default_config_files=[str(defaults)] if defaults else [],
        epilog=help_epilog(aliases, flags),
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the keys below.")
    parser.add_class_arguments(config_class)
    known = {action.dest for action in parser._actions if action.dest not in ("help", "config")} | set(aliases)
    try:
        namespace = parser.parse_args(argv)
        namespace.pop("config", None)
        namespace.pop("__default_config__", None)
        resolved = parser.dump(namespace, skip_none=False)
        values = parser.instantiate(namespace)
        config = config_class(**{key: values[key] for key in config_class.__dataclass_fields__})
    except ConfigError:
        raise
    except Exception as error:
        raise readable(error, known, prog) from error
    return config, switches, resolved


def split_switches(argv: Sequence[str], flags: Sequence[str]) -> tuple[list[str], dict[str, bool]]:
    """Take the command's own switches (``--resume``) out of the arguments."""
    names = {f"--{flag}": flag for flag in flags}
    rest = ["--print_config" if a == "--print-config" else a for a in argv if a not in names]
    return rest, {flag: name in argv for name, flag in names.items()}


def expand_aliases(argv: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Replace flat names by dotted keys; the same key given under both names is an error."""
    out, seen = [], {}
    for argument in argv:
        name, equals, value = argument.partition("=")
        key = aliases.get(name[2:]) if name.startswith("--") else None
        canonical = f"--{key}" if key else name
        if canonical.startswith("--"):
            if seen.setdefault(canonical, name) != name:
                raise ConfigError(
                    name, expected=f"one name for {canonical[2:]}", got=f"{seen[canonical]} and {name}", remedy="Drop one."
                )
            argument = canonical + equals + value
        out.append(argument)
    return out


def help_epilog(aliases: Mapping[str, str], flags: Sequence[str]) -> str:
    """Aliases and switches for the end of ``--help``."""
    lines = [f"--{flat} = --{dotted}" for flat, dotted in aliases.items() if flat != dotted]
    return "short names: " + ", ".join(lines) + (". switches: " + ", ".join(f"--{f}" for f in flags) if flags else "")


def readable(error: Exception, known: set[str], prog: str) -> ConfigError:
    """Turn a parser's error into one line that names the nearest key."""
    text = " ".join(str(error).split())
    match = UNKNOWN_KEY.search(text)
    if match is None:
        return ConfigError("arguments", expected="valid settings", got=text.rstrip("."), remedy=f"See {prog} --help.")
    name = match.group("flag") or match.group("key")
    flag = match.group("flag") is not None
    return unknown_key(name, known, prefix="--" if flag else "")


def unknown_key(name: str, known: set[str], prefix: str = "--") -> ConfigError:
    """Error for a key that does not exist, naming the nearest one that does."""
    leaves = {key.rsplit(".", 1)[-1]: key for key in sorted(known, reverse=True)}
    pool = [*known, *leaves]
    near = difflib.get_close_matches(name, pool, n=1, cutoff=0.5)
    nearest = leaves.get(near[0], near[0]) if near else None
    remedy = f"Did you mean {prefix}{nearest}?" if nearest else "See --print-config for all keys."
    return ConfigError(prefix + name, expected="a known key", got="an unknown one", remedy=remedy)
