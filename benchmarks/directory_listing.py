"""How long listing a folder of 200,000 images takes, and how much memory; `find` for comparison.

    .venv/bin/python -m benchmarks.directory_listing

The files are empty, since nobody opens them; names, sizes and times are looked at.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images

FOLDERS, FILES, ROUNDS = 200, 1000, 5


def prepare(root: Path) -> None:
    """A tree of two levels, as large collections have it."""
    for number in range(FOLDERS):
        folder = root / f"{number // 20:02}" / f"{number:03}"
        folder.mkdir(parents=True)
        for file in range(FILES):
            (folder / f"{number:03}_{file:06}.jpg").touch()


def find(root: Path) -> int:
    """List with `find`: path, size and time of each file."""
    told = subprocess.run(  # noqa: S603
        ["find", root, "-type", "f", "-printf", "%p %s %T@\n"],  # noqa: S607
        check=True,
        capture_output=True,
    )
    return told.stdout.count(b"\n")


def items(root: Path) -> int:
    """List as the source does, one item at a time."""
    return sum(1 for _ in DirectorySource(root).items())


def manifest(root: Path) -> int:
    """List into a table, sorted, with its fingerprint."""
    return len(list_images(DirectorySource(root)))


def peak_megabytes(root: Path) -> tuple[float, float]:
    """Memory that a process of its own needs at most: before it lists the images, and in all."""
    told = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.directory_listing", str(root)],
        check=True,
        capture_output=True,
        text=True,
    )
    before, after = map(float, told.stdout.split())
    return before, after


def peak() -> float:
    """Most memory that this process has held so far, in MB.

    Not `getrusage`, which counts what the parent held when it started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """Prepare, then list in turns."""
    if len(sys.argv) > 1:
        before = peak()
        manifest(Path(sys.argv[1]))
        print(before, peak())
        return
    ways: dict[str, Callable[[Path], int]] = {
        "find -printf": find,
        "DirectorySource.items": items,
        "list_images": manifest,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        print(f"{FOLDERS * FILES:,} files in {FOLDERS} folders; {ROUNDS} rounds, in turns")
        for _ in range(ROUNDS):
            for name, list_all in ways.items():
                started = time.perf_counter()
                assert list_all(root) == FOLDERS * FILES
                seconds[name].append(time.perf_counter() - started)
        before, after = peak_megabytes(root)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        ratio = median / medians["find -printf"]
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f} s"
        print(f"{name:<22} {median:6.2f} s   {ratio:5.2f} × find   ({spread})")
    print(f"peak memory of list_images: {after:.0f} MB, of which {before:.0f} MB before it begins")


if __name__ == "__main__":
    main()
