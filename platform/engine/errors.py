"""Every error that a user is meant to read."""

import re


class UserError(Exception):
    """Something the user can mend: the text says what happened, the value seen, what is allowed and what to do.

    Programs print the text alone, without a stack trace, and exit with `status`.
    """

    status = 2


class StoppedError(UserError):
    """The run was asked to stop (SIGTERM) and did, after a checkpoint."""

    status = 143


class ConfigError(UserError):
    """A key that does not exist or a value that cannot be."""


class StorageError(UserError):
    """Storage did not do what was asked; the text names the URI, the reason and what to do."""

    def __init__(self, text: str, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient
        """Waiting may mend it: no answer, an error of the server, a full disk."""


class NotFoundError(StorageError):
    """The named file or object is not there."""


class FailedTrialsError(UserError):
    """Some trials failed; the others are finished and recorded."""

    def __init__(self, text: str, failed: int) -> None:
        super().__init__(text)
        self.status = min(10 + failed, 99)


AS_TEXT = re.compile(rf"^{re.escape(UserError.__module__)}\.\w+: (.+)$", re.MULTILINE)
"""One of them as Python prints it, where an exception has become text."""


def user_error_of(error: BaseException) -> UserError | None:
    """`error` itself, or the UserError that a Ray task raised, out of what was wrapped around it.

    Ray's wrapper is an instance of the class that it wraps too, but its text is the remote stack trace.
    """
    from ray.exceptions import RayTaskError

    if isinstance(error, UserError) and not isinstance(error, RayTaskError):
        return error
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError) and not isinstance(seen, RayTaskError):
            return UserError(str(seen).splitlines()[0])  # Ray Data appends advice of its own
        seen = getattr(seen, "cause", None) or seen.__cause__
    # Pickling drops __cause__: what Ray Data raised in a task of a task is left as text alone.
    named = AS_TEXT.findall(str(error)) if isinstance(error, RayTaskError) else []
    return UserError(named[-1]) if named else None
