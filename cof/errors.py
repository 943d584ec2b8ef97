"""The exception and the warning that users are meant to read."""


class CofError(Exception):
    """Something the caller can put right; its message says in one sentence what and how.

    The command line prints the message and exits with status 2, without a traceback.
    """


class OutOfMemory(CofError):
    """There is not enough memory; less at a time may fit."""


class CofWarning(UserWarning):
    """The call goes on, but does less than was asked; the message says what and why."""
