"""The exceptions and the warning whose messages are meant for users."""

_LONGEST = 1000  # characters of a message


class CofError(Exception):
    """An error that the caller can correct; its message says in one sentence what and how.

    The command line prints the message and exits with status 2, without a traceback. A message
    that repeats a long input is cut in its middle.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > _LONGEST:
            half = _LONGEST // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(message)


class OutOfMemory(CofError):
    """There is not enough memory; smaller batches may fit."""


class TooLarge(CofError):
    """An image has more pixels than are decoded."""


class ServerError(CofError):
    """A server gave no answer, for a reason that does not lie in the question."""


class CofWarning(UserWarning):
    """The call continues, but does less than was asked; the message says what and why."""
