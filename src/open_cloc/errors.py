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


class SampleError(UserError):
    """One sample, or one entry of it, cannot be used.

    Attributes:
        cause: A few words for the kind of fault, by which samples are counted.
    """

    def __init__(self, message: str, cause: str = "invalid sample") -> None:
        super().__init__(message)
        self.cause = cause


class MissingPictureError(SampleError, MissingFileError):
    """A sample's picture is not there."""

    def __init__(self, message: str, cause: str = "missing picture") -> None:
        super().__init__(message, cause)


class RunError(Exception):
    """A run cannot go on, for a reason that lies outside of its input."""


class NotFiniteError(RunError, FloatingPointError):
    """What a model computes is no number any more: a loss, a gradient, an answer."""


class WorkerTimeoutError(RunError, TimeoutError):
    """A process of the run gives no answer."""


class WorkerDiedError(RunError, ChildProcessError):
    """A process of the run has died."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line of no more than 200 characters."""
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0][:200]
