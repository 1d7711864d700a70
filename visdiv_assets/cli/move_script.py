"""A shell script that moves images out of their folder, and back.

Here: its text. Not here: which images (`workflows/removal.py`).
"""

import os
from collections.abc import Iterable
from pathlib import Path

# Names come from outside, so each is one quoted word, behind a folder and never an option. What a
# script finds at either place decides what it does, so it can be stopped and run again.
HEAD = r"""#!/bin/sh
# Moves images out of their folder, each to the same path below another folder, and back:
#
#   sh SCRIPT TARGET           from the folder below to TARGET
#   sh SCRIPT --undo TARGET    from TARGET back
#
# Nothing is deleted or overwritten. It can be stopped and run again.
set -u
LC_ALL=C
export LC_ALL
unset CDPATH
"""

BODY = r"""
undo=
if [ "${1-}" = --undo ]; then
  undo=1
  shift
fi
if [ $# -ne 1 ] || [ -z "$1" ]; then
  echo "usage: sh SCRIPT TARGET, or sh SCRIPT --undo TARGET" >&2
  exit 2
fi
case $1 in
  /*) target=$1 ;;
  *) target=$PWD/$1 ;;
esac
if [ ! -d "$root" ]; then
  printf 'there is no folder: %s\n' "$root" >&2
  exit 2
fi
if [ -n "$undo" ]; then
  if [ ! -d "$target" ]; then
    printf 'there is no folder: %s\n' "$target" >&2
    exit 2
  fi
else
  mkdir -p "$target" || exit 2
fi
# The dot keeps a line break at the end of a name.
real_root=$(cd "$root" && pwd -P && echo .) || exit 2
real_target=$(cd "$target" && pwd -P && echo .) || exit 2
case ${real_target%??}/ in
  "${real_root%??}"/*)
    printf 'it is in the folder that the images are to leave: %s\n' "$target" >&2
    exit 2
    ;;
esac
if [ -n "$undo" ]; then
  from=$target
  to=$root
else
  from=$root
  to=$target
fi
moved=0
before=0
failed=0

there() {
  [ -e "$1" ] || [ -L "$1" ]
}

move() {
  if ! there "$from/$1"; then
    if there "$to/$1"; then
      before=$((before + 1))
    else
      printf 'not found: %s\n' "$from/$1" >&2
      failed=$((failed + 1))
    fi
    return
  fi
  if there "$to/$1"; then
    printf 'not moved, since there is one already: %s\n' "$to/$1" >&2
    failed=$((failed + 1))
    return
  fi
  case $1 in
    */*) mkdir -p "$to/${1%/*}" ;;
  esac
  if mv -n "$from/$1" "$to/$1" && ! there "$from/$1"; then
    moved=$((moved + 1))
  else
    printf 'not moved: %s\n' "$from/$1" >&2
    failed=$((failed + 1))
  fi
}

"""

TAIL = """
echo "moved $moved images, found $before moved before, could not move $failed"
[ "$failed" -eq 0 ]
"""


def move_script(root: Path, names: Iterable[str]) -> bytes:
    r"""The script.

    Args:
        root: the folder of the images, absolute.
        names: their paths below it, as Python has them: bytes that aren't UTF-8 are surrogates.

    Returns:
        the bytes of a script for any POSIX shell.

    Example:
        >>> script = move_script(Path("/photos"), ["it's.jpg"])
        >>> script.decode().splitlines()[-4]
        "move 'it'\\''s.jpg'"
    """
    moves = "".join(f"move {_quoted(name)}\n" for name in names)
    return os.fsencode(f"{HEAD}root={_quoted(str(root))}\n{BODY}{moves}{TAIL}")


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
