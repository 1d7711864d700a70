"""Rounds of a campaign: played one after the other, each in a folder of its own.

Here: options, progress, the summary, how to repeat one round. Not here: what happens in a round.
"""

import argparse
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Round:
    """One accident, and how it is judged.

    Attributes:
        name: unique in its campaign.
        play: does it in an empty folder, and returns what is wrong, in one line each.
    """

    name: str
    play: Callable[[Path], list[str]]

    def problems(self, folder: Path) -> list[str]:
        """What is wrong; an exception is, too, so that the other rounds are played all the same."""
        try:
            return self.play(folder)
        except Exception:  # noqa: BLE001
            return [f"the round itself failed: {traceback.format_exc()}"]


def random_of(seed: int, name: str) -> random.Random:
    """The random numbers of one round, whichever others are played."""
    return random.Random(f"{seed} {name}")


def main(module: str, about: str, rounds_of: Callable[[Path, int], Sequence[Round]]) -> int:
    """Play the rounds that are asked for on the command line.

    Args:
        module: how the campaign is started.
        about: what it does.
        rounds_of: all rounds for a seed; the folder is for what they share.

    Returns:
        the exit code: 1 if anything is wrong.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="play N rounds, drawn at random (default: all)"
    )
    parser.add_argument(
        "--only", metavar="TEXT", help="only rounds that have this in their names (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="only list the rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        shared = Path(folder, "shared")
        shared.mkdir()
        rounds = rounds_of(shared, options.seed)
        chosen = [each for each in rounds if (options.only or "") in each.name]
        if options.rounds is not None and options.rounds < len(chosen):
            chosen = random.Random(options.seed).sample(chosen, options.rounds)
        if not chosen:
            print(f"no round has {options.only!r} in its name; see --list", file=sys.stderr)
            return 2
        if options.list:
            print(*(each.name for each in chosen), sep="\n")
            return 0
        failed = _play(chosen, Path(folder))
    print(f"\n{len(chosen)} rounds with seed {options.seed}: {len(failed)} failed")
    for name in failed:
        print(f"  again: python -m {module} --seed {options.seed} --only '{name}'")
    return 1 if failed else 0


def _play(rounds: Sequence[Round], folder: Path) -> list[str]:
    """The names of the rounds that failed. A round is named first, should it crash all of this."""
    failed = []
    for number, each in enumerate(rounds, 1):
        print(f"[{number}/{len(rounds)}] {each.name} … ", end="", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            problems = each.problems(Path(own))
        print("FAILED" if problems else "ok", flush=True)
        for problem in problems:
            print("    " + problem.rstrip().replace("\n", "\n    "), flush=True)
        if problems:
            failed.append(each.name)
    return failed
