"""Errors a person can act on.

Here: the one exception whose message is shown as it is, without a traceback.
Not here: programming errors; those stay ValueError, TypeError and so on.
"""


class VisdivError(Exception):
    """Something in the input or the surroundings is wrong; the message is one sentence."""
