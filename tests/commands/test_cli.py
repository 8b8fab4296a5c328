import signal
import subprocess
import sys

import pytest

from seqkit import cli
from seqkit.errors import InputError, LeakageError, MemoryLimitError, ReferenceMismatchError


def test_help_lists_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in cli.VERBS)


def test_no_verb_is_a_usage_error(capsys):
    assert cli.main([]) == 2


def test_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["predcit"]) == 2
    assert "Did you mean 'predict'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("f", expected="a", got="b"), 3),
        (ReferenceMismatchError("f", expected="a", got="b"), 4),
        (MemoryLimitError("f", expected="a", got="b"), 5),
        (LeakageError("f", expected="a", got="b"), 6),
        (FileNotFoundError(2, "No such file", "x.vcf"), 3),
        (RuntimeError("boom"), 1),
        (cli.Stopped(signal.SIGINT), 130),
        (cli.Stopped(signal.SIGTERM), 143),
        (cli.Stopped(signal.SIGUSR1), 143),
    ],
)
def test_errors_become_one_line_and_their_code(monkeypatch, capsys, error, code):
    def fail(argv):
        raise error

    monkeypatch.setattr("seqkit.commands.configs.run", fail)
    assert cli.main(["configs"]) == code
    err = capsys.readouterr().err
    assert err.startswith("seqkit configs: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch, capsys):
    def fail(argv):
        raise InputError("f", expected="a", got="b")

    monkeypatch.setattr("seqkit.commands.configs.run", fail)
    assert cli.main(["configs", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m seqkit configs task/variant-effect | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.stderr == ""


def test_fit_names_the_nearest_task(capsys):
    assert cli.main(["fit", "--task", "variant-efect"]) == 2
    assert "variant-effect" in capsys.readouterr().err


def test_configs_prints_a_shipped_file(capsys):
    assert cli.main(["configs", "task/variant-effect"]) == 0
    assert "task: variant-effect" in capsys.readouterr().out
    assert cli.main(["configs"]) == 0
    assert "task/variant-effect" in capsys.readouterr().out


@pytest.mark.parametrize("signum", cli.STOPS)
def test_signals_become_their_exit_code_and_handlers_come_back(monkeypatch, capsys, signum):
    before = signal.getsignal(signum)
    monkeypatch.setattr("seqkit.commands.configs.run", lambda argv: signal.raise_signal(signum))
    assert cli.main(["configs"]) == (130 if signum == signal.SIGINT else 143)
    assert "--resume" in capsys.readouterr().err
    assert signal.getsignal(signum) == before
