"""The error type for problems that a user can fix.

Here: the one exception whose message is shown to users without a traceback.
Not here: programming errors; those stay ValueError, TypeError and so on.
"""


class VisdivError(Exception):
    """The input or the environment is wrong; the message says what to fix, in a sentence or two."""
