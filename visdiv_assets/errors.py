"""The error type for problems that a user can fix.

Here: the one exception whose message is shown to users without a traceback, and words that
such sentences share.
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


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things, as a sentence has it.

    Example:
        >>> counted(1, "image"), counted(2500, "image"), counted(0, "copy", "copies")
        ('1 image', '2,500 images', '0 copies')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
