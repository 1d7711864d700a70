"""The error types for problems that a user can fix.

Here: the exceptions whose messages are shown to users without a traceback, and words that such
sentences share.
Not here: programming errors; those stay ValueError, TypeError and so on.
"""

import shlex


class VisdivError(Exception):
    """The input or the environment is wrong; the message says what to fix, in a sentence or two."""


class Unreachable(VisdivError):  # noqa: N818  it says what is so, not who is wrong
    """A place cannot be reached now, and may be later: trying again may help.

    A server that does not answer, refuses connections or is overloaded; a mount that is gone. What
    is missing or forbidden is an ordinary `VisdivError`.
    """


class UnreadableUnit(VisdivError):  # noqa: N818
    """Not one image of a unit of work can be read here; elsewhere, it may be."""


class PlanGone(VisdivError):  # noqa: N818
    """A plan was merged, replaced or made again meanwhile: nobody needs its units any more."""


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
