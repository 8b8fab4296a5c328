import re
import shlex
from pathlib import Path

import pytest

from seqkit import cli

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
COMMANDS = [
    shlex.split(part)[1:]
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.splitlines()
    for part in line.split("&&")
    if shlex.split(part)[0].endswith("seqkit")
]


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python"])
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_name_real_verbs_and_flags(command, capsys):
    if command[0] == "bench":
        command = [*command[:2], "--help"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--print-config"])
    assert caught.value.code == 0, capsys.readouterr().err


def test_there_are_examples():
    assert len(COMMANDS) >= 4
    assert [kind for kind, _ in BLOCKS].count("python") >= 1
