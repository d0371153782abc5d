"""The two kinds of failure a user can meet."""

from __future__ import annotations


class NexError(Exception):
    """Something failed that the user did not cause; the command line exits with status 1."""


class InputError(NexError, ValueError):
    """The user gave something unusable; the command line exits with status 2.

    The message is one sentence that says what was given, what was expected and what to do.
    """
