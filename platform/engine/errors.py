"""The error a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: the text says what happened, the value seen, what is allowed and what to do.

    Programs print the text alone, without a stack trace, and exit with status 2.
    """


def user_error_of(error: BaseException) -> UserError | None:
    """The UserError that a Ray task raised, out of what was wrapped around it (whose text is the remote stack trace)."""
    from ray.exceptions import RayTaskError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError) and not isinstance(seen, RayTaskError):
            return UserError(str(seen).splitlines()[0])  # Ray Data appends advice of its own
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
