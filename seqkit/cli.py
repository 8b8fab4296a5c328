"""The command line: finds the verb, runs it, turns errors into one line and an exit code.

Nothing heavy is imported here; a verb's module is loaded when the verb is called.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from seqkit import __version__
from seqkit.environment import prepare
from seqkit.errors import SeqkitError

VERBS = {
    "fit": ("seqkit.commands.fit", "train a model: --task variant-effect, pretrain, forecast"),
    "test": ("seqkit.commands.test", "evaluate a run on labelled input: --ckpt RUN"),
    "predict": ("seqkit.commands.predict", "score new input with a run: --ckpt RUN --out FILE"),
    "embed": ("seqkit.commands.embed", "average hidden states along whole chromosomes: --ckpt RUN --fasta --out FILE"),
    "estimate": ("seqkit.commands.estimate", "memory and time beforehand: --model M --length N --for h100-80gb"),
    "doctor": ("seqkit.commands.doctor", "check this machine: torch, CUDA, Triton, one known answer per op"),
    "configs": ("seqkit.commands.configs", "list the tasks and model presets, or print one"),
    "bench": ("seqkit.commands.bench", "time the kernels on this machine: bench kernels"),
}

# Verbs of the FASTA/FASTQ toolkit of the same name, which is on many machines' PATH.
OTHER_SEQKIT = frozenset({
    "amplicon", "bam", "common", "concat", "convert", "duplicate", "fa2fq", "faidx", "fish", "fq2fa", "fx2tab", "grep",
    "genautocomplete", "head", "head-genome", "locate", "merge-slides", "mutate", "pair", "range", "rename", "replace",
    "restart", "rmdup", "sample", "sana", "scat", "seq", "shuffle", "sliding", "sort", "split", "split2", "stat",
    "stats", "subseq", "sum", "tab2fx", "translate", "watch",
})  # fmt: skip

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_UNREADABLE = 3
EXIT_MEMORY = 5
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGUSR1 (a SLURM job near its time limit) arrived.

    It unwinds the stack so that temporary files go and checkpoints stay.

    Not a KeyboardInterrupt, because Lightning answers that one with exit code 1.
    """

    def __init__(self, signum: int):
        self.signum = signum
        self.exit_code = 130 if signum == signal.SIGINT else 143


def usage() -> str:
    """The text of ``seqkit --help``."""
    lines = [
        f"seqkit {__version__}: Mamba models for genomes and time series",
        "",
        "usage: seqkit VERB [options]      seqkit VERB --help",
        "",
        *(f"  {verb:<9} {summary}" for verb, (_, summary) in VERBS.items()),
        "",
        "  --version  print the version",
        "  --debug    (any verb) show the traceback of an error",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        Exit code: 0 ok, 1 a bug of ours, 2 usage, 3 unreadable input, 4 reference mismatch, 5 memory, 6 leakage,
        130 and 143 interrupted and resumable.
    """
    prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(f"seqkit {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"seqkit: {unknown_verb(verb)}", file=sys.stderr)
        return EXIT_USAGE
    return guarded(verb, arguments[1:], debug)


def unknown_verb(verb: str) -> str:
    """One line that names the nearest verb."""
    import difflib

    if verb in OTHER_SEQKIT:
        return (
            f"'{verb}' is a verb of the FASTA/FASTQ toolkit of the same name, and this is seqkit for Mamba models; "
            "call that one by its full path, and this one as seqkit-ml or python -m seqkit"
        )
    near = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown verb '{verb}'; the verbs are {', '.join(VERBS)}.{hint}"


def guarded(verb: str, arguments: list[str], debug: bool) -> int:
    """Run a verb and map what it raises to the exit codes of the manual."""
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: print(f"seqkit {verb}: warning: {message}", file=sys.stderr)
    previous = {signum: signal.signal(signum, _raise_stopped) for signum in STOPS}
    try:
        return importlib.import_module(VERBS[verb][0]).run(arguments) or 0
    except SeqkitError as error:
        return _failed(verb, str(error), error.exit_code, debug)
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; stdout points elsewhere so that the last flush is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stop:
        line = f"stopped by {signal.Signals(stop.signum).name}; the same command with --resume goes on from there"
        return _failed(verb, line, stop.exit_code, debug)
    except OSError as error:
        return _failed(verb, f"{error.filename or 'file'}: {error.strerror or error}", EXIT_UNREADABLE, debug)
    except Exception as error:
        if _out_of_memory(error):
            line = "out of memory; a smaller batch, window or length fits (seqkit estimate counts beforehand)"
            return _failed(verb, line, EXIT_MEMORY, debug)
        line = f"bug in seqkit: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return _failed(verb, line + " (run again with --debug and report the traceback)", EXIT_BUG, debug)
    finally:
        warnings.showwarning = shown
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _out_of_memory(error: Exception) -> bool:
    """By name, because torch is not imported here: on a GPU, or on the host."""
    said = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and "out of memory" in str(error)
    return isinstance(error, MemoryError) or said or "can't allocate memory" in str(error)


def _raise_stopped(signum, frame):
    raise Stopped(signum)


def _failed(verb: str, line: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"seqkit {verb}: {line}", file=sys.stderr)
    return code
