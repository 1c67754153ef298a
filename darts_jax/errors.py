"""The one exception that a user's mistake raises; commands print it as one line, exit 2.

Floor 0: every room may raise it, so that the message is written where the value is known.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's: the message is one line with the bad value and the choices."""


def unknown(what: str, name: object, choices: Iterable[str]) -> UserError:
    """Returns the error for an unknown `name` of `what`, with a suggestion and the choices."""
    names = sorted(choices)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {what} {str(name)!r}; {hint}choices: {', '.join(names)}")
