"""The errors whose messages are written for the user."""

import re
import signal


class UserError(Exception):
    """An error that the user can fix. The text states what happened, the value, what is allowed and what to do.

    Programs print only the text, without a stack trace, and exit with `status`.
    """

    status = 2


class StoppedError(UserError):
    """The run was stopped by a signal, after a checkpoint. Its exit status is that of the signal: 143 SIGTERM, 130 Ctrl-C."""

    def __init__(self, text: str, number: int = signal.SIGTERM) -> None:
        super().__init__(text)
        self.status = 128 + number


class ConfigError(UserError):
    """An unknown key or an invalid value in the configuration."""


class StorageError(UserError):
    """A storage operation failed. The text names the URI, the reason and what to do."""

    def __init__(self, text: str, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient
        """Whether a retry may succeed: no answer, an error of the server, a full disk."""


class NotFoundError(StorageError):
    """The named file or object does not exist."""


class FailedTrialsError(UserError):
    """Some trials of a sweep are not finished. The others are finished and recorded."""

    def __init__(self, text: str, failed: int) -> None:
        super().__init__(text)
        self.status = min(10 + failed, 99)


AS_TEXT = re.compile(rf"^{re.escape(UserError.__module__)}\.\w+: (.+)$", re.MULTILINE)
"""Matches an error of this module in the text of a stack trace."""


def user_error_of(error: BaseException) -> UserError | None:
    """`error` if it is a UserError, or the UserError inside the wrappers of a Ray task; None if there is none.

    Ray's wrapper is also an instance of the class that it wraps, but its text is the remote stack trace.
    """
    from ray.exceptions import RayTaskError

    if isinstance(error, UserError) and not isinstance(error, RayTaskError):
        return error
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError) and not isinstance(seen, RayTaskError):
            return UserError(str(seen).splitlines()[0])  # Ray Data appends its own advice
        seen = getattr(seen, "cause", None) or seen.__cause__
    # Pickling drops __cause__: an error that Ray Data raised in a nested task is only present as text.
    named = AS_TEXT.findall(str(error)) if isinstance(error, RayTaskError) else []
    return UserError(named[-1]) if named else None
