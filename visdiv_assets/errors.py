"""The error type for problems that a user can fix.

Here: the one exception whose message is shown to users without a traceback, and the sentence that
most commands may end with.
Not here: programming errors; those stay ValueError, TypeError and so on.
"""

import shlex


class VisdivError(Exception):
    """The input or the environment is wrong; the message says what to fix, in a sentence or two."""


def never_evaluated(dataset: str) -> VisdivError:
    """The error of everything that needs an evaluation of a dataset and finds none.

    Example:
        >>> print(never_evaluated("birds"))
        birds has never been evaluated; run `visdiv score birds`
    """
    return VisdivError(
        f"{dataset} has never been evaluated; run `visdiv score {shlex.quote(dataset)}`"
    )
