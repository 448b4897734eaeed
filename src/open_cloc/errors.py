"""Errors that are the user's to mend, told apart from defects of ours and of libraries.

The command line shows a `UserError` as one line, and anything unexpected with its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """What the user gave is wrong: a file, an option, a name. Says what, what was expected, and where."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder, a model or a data set that the user named is not there."""


class ExistingFileError(UserError, FileExistsError):
    """Something is there already that would be overwritten."""


class RunError(Exception):
    """A run cannot go on, for a reason that lies outside of its input."""


class NotFiniteError(RunError, FloatingPointError):
    """A loss or a gradient is no number any more."""


class WorkerTimeoutError(RunError, TimeoutError):
    """A process of the run gives no answer."""


class WorkerDiedError(RunError, ChildProcessError):
    """A process of the run has died."""
