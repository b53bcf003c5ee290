"""Errors a user may meet, each with the exit code the command line gives it.

Every message is one sentence that says what is wrong, what was expected, what came and how to
mend it.
"""


class TrialrunError(Exception):
    """Base of the errors that are shown as one sentence without a traceback."""

    exit_code = 2


class UsageError(TrialrunError, ValueError):
    """Say that an argument, a file or a table is not what it must be (exit code 2)."""


class NotRunnable(TrialrunError):
    """Say that this machine cannot run what was asked (exit code 5)."""

    exit_code = 5


class MissingExtra(NotRunnable, ImportError):
    """Say that an optional package is not installed, and how to install it (exit code 5)."""
