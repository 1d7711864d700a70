"""A soak: an hour's accidents in a few minutes, and whether the service tells the truth after it.

    python -m visdiv_assets_tests.campaigns.soak --minutes 20 --datasets 50 --seed 0

A real `dagster dev` watches datasets, while sources hang, vanish and change, services that alerts
go to are down or slow, `visdiv.yaml` is broken, the disk is full, and processes are killed. Then
everything is mended. When it has become quiet, every evaluation must describe its source, every
recipient must have been told each change once and in order, and nothing may be stuck or lost.

What happens is drawn from the seed, and printed first. The times at which the service does its
part are its own, so the same seed need not end the same.

Here: the command. Not here: what happens (`soak_schedule.py`), how (`soak_world.py` and what it
imports), and what is right (`soak_judge.py`).
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from visdiv_assets_tests.campaigns import soak_judge as judge
from visdiv_assets_tests.campaigns.soak_judge import Finding
from visdiv_assets_tests.campaigns.soak_schedule import Event, datasets_of, draw
from visdiv_assets_tests.campaigns.soak_sources import THRESHOLD
from visdiv_assets_tests.campaigns.soak_world import RECIPIENTS, Facts, World, seen

# Of the whole: when the night begins.
NIGHT = 0.35
POLL_SECONDS = 10
# By so much the night's runs may be asked for late.
LATE_NIGHT = 300
# Nobody may be told anything more so long after all is quiet.
STILL_SECONDS = 20
FEWEST = 8
# Nothing is decided by these; they end what would never end.
WARM_UP_SECONDS, RUN_SECONDS = 1200.0, 300.0


def judge_all(facts: Facts) -> list[Finding]:
    """What all judges say."""
    # What was removed may be forgotten, alerts that wait included.
    recorded = [each for each in facts.recorded if each.dataset not in facts.removed]
    told = [each for each in facts.told if each.dataset not in facts.removed]
    return [
        *[Finding("world", problem) for problem in facts.world],
        *judge.judge_evaluations(facts.sources, facts.latest),
        *judge.judge_partitions(facts.partitions, facts.registered),
        *judge.judge_runs(facts.runs, facts.slots),
        *judge.judge_night(facts.runs, facts.scheduled, facts.night),
        *judge.judge_order(facts.recorded, facts.removed),
        *judge.judge_scores(facts.evaluations, facts.recorded, THRESHOLD),
        *judge.judge_recipients(recorded, told, RECIPIENTS, facts.kills),
        *judge.judge_last_words(told, RECIPIENTS, facts.low),
        *[Finding("messages", wrong) for wrong in facts.wrong_messages],
        *judge.judge_memory(facts.memory, facts.at),
    ]


def excused(events: Sequence[Event], night: float) -> set[str]:
    """The datasets that were not in order in the settings when the night's runs were asked for.

    That is minutes late where the service is just being started again.
    """
    return {
        event.whom
        for event in events
        if event.what in ("settings unset variable", "settings unregistered")
        and event.at - LATE_NIGHT <= night <= (event.until or event.at) + 90
    }


def wait_until_quiet(world: World, patience: float) -> None:
    """Until nothing is left that time would mend, or patience ends."""
    deadline, before = world.now() + patience, ""
    while world.now() < deadline:
        time.sleep(POLL_SECONDS)
        try:
            findings = judge_all(world.facts())
        except Exception as error:  # noqa: BLE001
            world.say(f"the facts cannot be told yet: {error}")
            continue
        waiting = [each for each in findings if each.failed and each.passing]
        if not waiting:
            world.say("all is quiet")
            return
        counts = {each.judge: 0 for each in waiting}
        for each in waiting:
            counts[each.judge] += 1
        said = ", ".join(f"{judge} {count}" for judge, count in counts.items())
        if said != before:
            world.say(f"not quiet yet: {said}")
            before = said
    world.say("it does not become quiet")


def take_pictures(world: World, folder: Path) -> None:
    """Of the web UI: runs, an asset's checks, automation."""
    from playwright.sync_api import sync_playwright

    from visdiv_assets_tests.test_browser import CHROMIUM

    if CHROMIUM is None:
        world.say("there is no chromium, so no pictures (Debian: apt-get install chromium)")
        return
    folder.mkdir(parents=True, exist_ok=True)
    address = f"http://127.0.0.1:{world.service.port}"
    pages = {
        "runs": "runs",
        "checks": "assets/diversity_metrics?view=checks",
        "automation": "automation",
    }
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        for name, path in pages.items():
            page.goto(f"{address}/{path}")
            page.wait_for_timeout(8000)  # it never stops polling, so there is nothing to wait for
            page.screenshot(path=folder / f"{name}.png")
        browser.close()
    world.say(f"pictures are in {folder}")


def soak(options: argparse.Namespace, folder: Path) -> list[Finding]:
    """Play it all; the findings. The facts behind them are in `facts.json` of the folder."""
    seconds = options.minutes * 60
    datasets = datasets_of(options.datasets)
    events = draw(options.seed, seconds, datasets)
    findings: list[Finding] = []
    facts = None
    world = World(folder, datasets)
    try:
        world.say(f"a full disk is {world.disk.kind}")
        world.start()
        if not world.warm_up(WARM_UP_SECONDS):
            findings.append(Finding("world", "not even undisturbed is every dataset evaluated"))
        world.set_out(NIGHT * seconds)
        world.say(f"the accidents begin; the night begins at {world.night_at:.0f} s")
        late = excused(events, world.night_at)
        world.scheduled = [each.name for each in datasets if each.name not in late]
        world.play(events, seconds)
        world.mend()
        world.say("everything is mended")
        wait_until_quiet(world, options.patience * 60)
        status = world.run_once_more(RUN_SECONDS)
        time.sleep(STILL_SECONDS)
        facts = world.facts(whole=True)
        findings += [*judge_all(facts), *judge.judge_next_run(status)]
        if options.screenshots:
            take_pictures(world, options.screenshots)
    except Exception as error:  # noqa: BLE001
        findings.append(Finding("world", f"{type(error).__name__}: {error}"))
    finally:
        failed = any(each.failed for each in findings) or not findings
        left = world.close(keep=failed or options.keep)
    findings += [Finding("processes", f"left after the end: {each}", failed=False) for each in left]
    if facts:
        (folder / "facts.json").write_text(
            json.dumps(dataclasses.asdict(facts), indent=1, default=list)
        )
        print(f"\nstarts of the service: {world.service.starts}; changes told: {seen(facts.told)}")
    return findings


def main() -> int:
    """The command; its exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m visdiv_assets_tests.campaigns.soak",
        description=(__doc__ or "").partition("\n\nHere")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=20.0,
        help="of accidents, after each dataset was evaluated once (default: 20)",
    )
    parser.add_argument("--datasets", type=int, default=50, help=f"at least {FEWEST} (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens (default: 0)")
    parser.add_argument(
        "--patience", type=float, help="minutes to become quiet in (default: as --minutes, or 5)"
    )
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="pictures of the web UI")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    parser.add_argument("--list", action="store_true", help="only list what would happen")
    options = parser.parse_args()
    if options.datasets < FEWEST:
        parser.error(f"--datasets must be at least {FEWEST}")
    options.patience = options.patience or max(5.0, options.minutes)
    options.screenshots = options.screenshots and options.screenshots.absolute()
    events = draw(options.seed, options.minutes * 60, datasets_of(options.datasets))
    print(*events, sep="\n", flush=True)
    if options.list:
        return 0
    # Also where a shell has started this in the background, and SIGINT would be ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="soak-")).resolve()
    started = Path.cwd()
    print(f"\nin {folder}", flush=True)
    try:
        findings = soak(options, folder)
    except KeyboardInterrupt:
        print(f"\nstopped; kept: {folder}")
        return 130
    print(f"\n{judge.table(findings)}\n")
    failed = sum(each.failed for each in findings)
    os.chdir(started)
    if failed or options.keep:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    again = f"--minutes {options.minutes:g} --datasets {options.datasets} --seed {options.seed}"
    print(f"{failed} failed; again: python -m visdiv_assets_tests.campaigns.soak {again}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
