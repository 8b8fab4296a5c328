"""Errors that tell what was given, what was expected and what to do.

Every error a user can cause is a :class:`SeqkitError`. The command line prints its one line and leaves with its
``exit_code``; notebooks catch it as the ``ValueError`` it is.
"""

from __future__ import annotations


class SeqkitError(ValueError):
    """Base of all errors a user can cause.

    Args:
        argument: Name of the argument, column, file or key at fault.
        expected: What would have been accepted.
        got: What was given.
        remedy: What to do about it.
    """

    exit_code = 2

    def __init__(self, argument: str, *, expected: str, got: str, remedy: str = ""):
        self.argument, self.expected, self.got, self.remedy = argument, expected, got, remedy
        super().__init__(f"{argument}: expected {expected}, got {got}." + (f" {remedy}" if remedy else ""))


class ShapeError(SeqkitError):
    """A tensor has the wrong shape, dtype, device or layout."""


class ConfigError(SeqkitError):
    """A setting is unknown, contradictory or out of range (exit code 2)."""


class InputError(SeqkitError):
    """A file cannot be read as what it should be (exit code 3)."""

    exit_code = 3


class CheckpointError(InputError):
    """A checkpoint is truncated, of another task or of another version (exit code 3)."""


class ReferenceMismatchError(SeqkitError):
    """Variants and reference disagree beyond ``--max-mismatch`` (exit code 4)."""

    exit_code = 4


class MemoryLimitError(SeqkitError):
    """The work does not fit the memory of the device or the job (exit code 5)."""

    exit_code = 5


class LeakageError(SeqkitError):
    """A split shares information between its parts (exit code 6)."""

    exit_code = 6
