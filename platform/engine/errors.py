"""The error a user is meant to read."""

import re

USER_ERROR_LINE = re.compile(r"^platform\.engine\.(?:errors\.UserError|config\.ConfigError|s3_errors\.\w+): (.+)$", re.MULTILINE)

class UserError(Exception):
    """Something the user can mend: the text says what happened, the value seen, what is allowed and what to do.

    Programs print the text alone, without a stack trace, and exit with `status`.
    """

    status = 2


class StoppedError(UserError):
    """The run was asked to stop (SIGTERM) and did, after a checkpoint."""

    status = 143


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
    named = USER_ERROR_LINE.findall(str(error)) if isinstance(error, RayTaskError) else []
    return UserError(named[-1]) if named else None
