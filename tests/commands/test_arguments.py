from dataclasses import dataclass, field

import pytest
import yaml

from seqkit.commands.arguments import parse
from seqkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Settings of a part.

    Attributes:
        window: Tokens.
        columns: Map of names.
    """

    window: int = 128
    columns: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings of a run.

    Attributes:
        seed: Seed.
        data: A part.
    """

    seed: int = 0
    data: Inner = field(default_factory=Inner)


def run(*argv, **kwargs):
    return parse("seqkit fit", Outer, argv, aliases={"window": "data.window"}, **kwargs)


@pytest.mark.parametrize("argv", [["--data.window", "7"], ["--window", "7"], ["--window=7"], ["--data.window=7"]])
def test_alias_and_dotted_key_set_the_same_field(argv):
    assert run(*argv)[0] == Outer(data=Inner(window=7))


def test_later_sources_win(tmp_path):
    defaults, config = tmp_path / "task.yaml", tmp_path / "mine.yaml"
    defaults.write_text("seed: 1\ndata:\n  window: 2\n")
    config.write_text("data:\n  window: 3\n")
    assert run(defaults=defaults)[0] == Outer(seed=1, data=Inner(window=2))
    assert run("--config", str(config), defaults=defaults)[0] == Outer(seed=1, data=Inner(window=3))
    assert run("--config", str(config), "--window", "4", defaults=defaults)[0].data.window == 4


def test_resolved_text_is_yaml_that_gives_the_same_config(tmp_path):
    config, _, text = run("--window", "9", "--data.columns", "{pos: position}")
    assert yaml.safe_load(text)["data"] == {"window": 9, "columns": {"pos": "position"}}
    (tmp_path / "again.yaml").write_text(text)
    assert run("--config", str(tmp_path / "again.yaml"))[0] == config


@pytest.mark.parametrize(
    ("argv", "named"),
    [(["--data.windw", "1"], "--data.window"), (["--sed", "1"], "--seed"), (["--windo", "1"], "--window")],
)
def test_unknown_flag_names_the_nearest(argv, named):
    with pytest.raises(ConfigError, match=f"Did you mean {named}"):
        run(*argv)


def test_unknown_yaml_key_names_the_nearest(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("data:\n  windw: 7\n")
    with pytest.raises(ConfigError, match=r"windw.*Did you mean data\.window"):
        run("--config", str(config))


def test_wrong_type_is_a_usage_error_that_names_key_and_value():
    with pytest.raises(ConfigError, match=r"data\.window.*abc") as caught:
        run("--window", "abc")
    assert caught.value.exit_code == 2


def test_alias_and_dotted_key_together_are_refused():
    with pytest.raises(ConfigError, match=r"--data\.window"):
        run("--window", "1", "--data.window", "2")


def test_own_switches_and_options_are_taken_out():
    _, own, text = run("--resume", "--out", "x", "--seed", "3", flags=("resume", "overwrite"), options=("out",))
    assert own == {"resume": True, "overwrite": False, "out": "x"}
    assert "resume" not in text


def test_dotted_flags_take_hyphens():
    @dataclass(frozen=True, kw_only=True)
    class Part:
        """Part.

        Attributes:
            max_epochs: Number.
        """

        max_epochs: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Whole:
        """Whole.

        Attributes:
            trainer: Part.
        """

        trainer: Part = field(default_factory=Part)

    for flag in ("--trainer.max-epochs", "--trainer.max_epochs"):
        assert parse("x", Whole, [flag, "4"])[0].trainer.max_epochs == 4


def test_option_without_value_is_refused():
    with pytest.raises(ConfigError, match="--out"):
        run("--out", options=("out",))


def test_print_config_prints_yaml_and_leaves(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--window", "5", "--print-config")
    assert caught.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["window"] == 5
