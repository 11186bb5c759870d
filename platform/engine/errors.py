"""The error a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: the text says what happened, the value seen, what is allowed and what to do.

    Programs print the text alone, without a stack trace, and exit with status 2.
    """
