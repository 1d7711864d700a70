"""The world of a soak: a project, its service, its sources, whom it alerts; and accidents.

Here: doing what the schedule says, and recording the facts that are judged. Not here: what happens
when (`soak_schedule.py`), and what is right (`soak_judge.py`).
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import AlertSettings
from visdiv_assets.settings.reading import load_settings
from visdiv_assets.sources.manifest import list_images, look
from visdiv_assets.sources.opening import open_source
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.campaigns.soak_judge import (
    Evaluated,
    Kill,
    Memory,
    Partitions,
    Recorded,
    Run,
    Stands,
    Told,
    read_message,
)
from visdiv_assets_tests.campaigns.soak_schedule import (
    HOOKS,
    SETTINGS_FAULTS,
    SOURCE_FAULTS,
    Dataset,
    Event,
)
from visdiv_assets_tests.campaigns.soak_servers import Hook, ImageServer, MailServer
from visdiv_assets_tests.campaigns.soak_service import Disk, Service, adopt_orphans
from visdiv_assets_tests.campaigns.soak_sources import ALIKE, FEW, MANY, THRESHOLD, Images

TEAM, KEPT = "team@example.com", "kept@example.com"
RECIPIENTS = (*(f"hook {name}" for name in HOOKS), f"mail {TEAM}", f"mail {KEPT}")

PARTITION_SECONDS, MEMORY_SECONDS = 3.0, 10.0

# Who is registered again has a partition again only after a while; until then an old one may go.
REGISTERED_AGAIN_SECONDS = 20.0

# How long an accident waits for somebody to happen to, or to have seen it.
RUN_PATIENCE = 60.0

# Holds the results open until its input ends.
READER = """
import sys, time, duckdb
while True:
    try:
        held = duckdb.connect(sys.argv[1], read_only=True)
        break
    except duckdb.Error:
        time.sleep(0.1)
held.execute("SELECT count(*) FROM evaluations").fetchall()
print("held", flush=True)
sys.stdin.read()
"""

FOREVER = float("inf")


@dataclass
class Facts:
    """What is judged; times are seconds since the beginning."""

    sources: dict[str, Stands] = field(default_factory=dict)
    latest: dict[str, Evaluated] = field(default_factory=dict)
    evaluations: list[Evaluated] = field(default_factory=list)
    partitions: list[Partitions] = field(default_factory=list)
    registered: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    removed: dict[str, list[float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    slots: dict[str, list[str]] = field(default_factory=dict)
    recorded: list[Recorded] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    wrong_messages: list[str] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    low: set[str] = field(default_factory=set)
    scheduled: list[str] = field(default_factory=list)
    night: str = ""
    next_run: str = ""
    at: float = 0.0
    world: list[str] = field(default_factory=list)


class World:
    """A soak's project in a folder, from its beginning to its end.

    The process moves into the folder, since Dagster's own paths may be relative to it.

    Args:
        folder: an empty folder.
        datasets: what is registered.
    """

    def __init__(self, folder: Path, datasets: list[Dataset]) -> None:
        adopt_orphans()
        os.chdir(folder)
        self.folder, self.datasets = folder, datasets
        self.over = threading.Event()
        self._began = time.monotonic()
        self._began_at = datetime.now(UTC)
        self._lock = threading.RLock()
        self._received: list[tuple[str, float, str, str]] = []
        self._facts = Facts()
        self._settings_fault, self._unset = "", set[str]()
        self._reader: subprocess.Popen[bytes] | None = None
        self.scheduled = [each.name for each in datasets]

        self.service = Service(folder, self._service_has_ended)
        self.disk = Disk(folder / "store", self.service)
        self._warehouse = Warehouse(folder / "store/visdiv.duckdb")
        (folder / "web").mkdir()
        self.images_server = ImageServer(folder / "web")
        self.images = {
            each.name: Images(
                each,
                number,
                folder / ("web" if each.is_on_the_web else "local") / each.name,
                f"{self.images_server.url}/{each.name}",
            )
            for number, each in enumerate(datasets)
        }
        self.hooks = {name: Hook(name, self._receive) for name in HOOKS}
        self.mail = MailServer(self._receive)
        self._registered = {each.name for each in datasets}
        self._spans: dict[str, list[list[float]]] = {
            each.name: [[0.0, FOREVER]] for each in datasets
        }
        self.night: datetime | None = None
        self._write_settings()

    # --- time and words ---

    def set_out(self, night_in: float) -> None:
        """Now is the beginning, from which times count; the night begins at a whole minute.

        Args:
            night_in: seconds until then, or a little more.
        """
        with self._lock:
            self._began, self._began_at = time.monotonic(), datetime.now(UTC)
            self._facts.partitions.clear()
            self._facts.memory.clear()
            night = self._began_at + timedelta(seconds=night_in + 59)
            self.night = night.replace(second=0, microsecond=0)
            self._write_settings()

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        print(f"{self.now():6.0f} s  {text}", flush=True)

    def _seconds(self, at: datetime) -> float:
        return (at - self._began_at).total_seconds()

    @property
    def night_at(self) -> float:
        """When the night begins, in seconds since the beginning."""
        assert self.night
        return self._seconds(self.night)

    # --- settings ---

    def _write_settings(self) -> None:
        """`visdiv.yaml` as it should be at this moment, its fault included."""
        with self._lock:
            path = self.folder / "visdiv.yaml"
            fault = self._settings_fault
            if fault == "removed":
                path.unlink(missing_ok=True)
                return
            text = self._settings_text()
            head = text.partition("datasets:")[0]
            faulty = {
                "broken": f"{text}  ]: [oops\n",
                "emptied": "",
                "cut off": head,
            }
            path.write_text(faulty.get(fault, text))

    def _settings_text(self) -> str:
        pair = f"{self.hooks['pair-a'].url}, {self.hooks['pair-b'].url}"
        urls = [hook.url for name, hook in self.hooks.items() if not name.startswith("pair")]
        urls += [pair, self.mail.url(TEAM), self.mail.url(KEPT, MailServer.REJECTED)]
        lines = [
            "store: store",
            "settle_seconds: 2",
            "embedder: {weights: sscd_disc_mixup_int8, device: cpu}",
            *([f'nightly: {{time: "{self.night:%H:%M}", timezone: UTC}}'] if self.night else []),
            "alerts:",
            f"  urls: {json.dumps(urls)}",
            # So that whether a score has recovered depends on nothing but itself.
            *(["  recovery_days: 0"] if "recovery_days" in AlertSettings.model_fields else []),
            "datasets:",
        ]
        for name in sorted(self._registered):
            uri = "${SOAK_NOT_SET}/x" if name in self._unset else self.images[name].uri
            about = {"source": uri, "threshold": THRESHOLD, "basis": "plain"}
            if not self.night:
                about["schedule"] = False
            lines.append(f"  {name}: {json.dumps(about)}")
        return "\n".join([*lines, ""])

    # --- accidents ---

    def begin(self, event: Event) -> None:
        """Do what an event says."""
        what, _, how = event.what.partition(" ")
        if event.what in SOURCE_FAULTS:
            self.images_server.faults[event.whom] = event.what
        elif event.what in ("fall", "fall for good", "lose"):
            self.images[event.whom].put(FEW if event.what == "lose" else ALIKE)
        elif event.what == "change":
            self.images[event.whom].put()
        elif event.what == "change in a run":
            self.images[event.whom].put()
            if self._wait_for(lambda: self._is_running(event.whom)):
                self.images[event.whom].put()
                self.say(f"{event.whom} has changed under its run")
        elif event.what == "gone":
            self.images[event.whom].hide()
        elif what == "alerts":
            (self.mail if event.whom == "mail" else self.hooks[event.whom]).set_fault(how)
        elif what == "settings":
            self._begin_settings_fault(how, event.whom)
        elif what == "kill":
            self._kill(event.whom)
        elif what == "reader":
            self._begin_reading()
        elif event.what == "disk full":
            self.disk.fill()
        else:
            raise ValueError(f"nobody knows how to do {event.what!r}")

    def end(self, event: Event) -> None:
        """Undo it."""
        what, _, how = event.what.partition(" ")
        if event.what in SOURCE_FAULTS:
            self.images_server.faults[event.whom] = None
        elif event.what in ("fall", "lose"):
            # A fall that nobody has seen tells nothing of alerts; images that are lost may be back.
            if event.what == "fall" and not self._wait_for(
                lambda: self._is_seen_low(event.whom), 3
            ):
                self.say(f"nobody has seen that {event.whom} fell")
            self.images[event.whom].put(MANY)
        elif event.what == "gone":
            self.images[event.whom].show()
        elif what == "alerts":
            (self.mail if event.whom == "mail" else self.hooks[event.whom]).set_fault(None)
        elif what == "settings":
            self._end_settings_fault(how, event.whom)
        elif what == "reader":
            self._end_reading()
        elif event.what == "disk full":
            self.disk.free()

    def mend(self) -> None:
        """Everything is as it should be, whatever was under way."""
        self.images_server.faults.clear()
        for images in self.images.values():
            images.show()
        for hook in self.hooks.values():
            hook.set_fault(None)
        self.mail.set_fault(None)
        self._end_reading()
        self.disk.free()
        with self._lock:
            for name in self.images.keys() - self._registered:
                self._register_again(name)
            self._settings_fault = ""
            self._unset.clear()
            self._write_settings()

    def _begin_settings_fault(self, fault: str, name: str) -> None:
        assert fault in SETTINGS_FAULTS
        if fault == "unregistered":
            self._unregister(name)
            return
        with self._lock:
            if fault == "unset variable":
                self._unset.add(name)
            else:
                self._settings_fault = fault
            self._write_settings()

    def _end_settings_fault(self, fault: str, name: str) -> None:
        with self._lock:
            if fault == "unregistered":
                self._register_again(name)
            self._unset.discard(name)
            self._settings_fault = ""
            self._write_settings()

    def _unregister(self, name: str) -> None:
        with self._lock:
            at = self.now()
            self._spans[name][-1][1] = at
            self._facts.removed.setdefault(name, []).append(at)
            done = self._visdiv("remove", name)
            if done.returncode:
                self.say(f"`visdiv remove {name}` fails: {done.stderr.strip()[-300:]}")
                self._facts.world.append(f"`visdiv remove` fails: {done.stderr.strip()[-300:]}")
            self._registered.discard(name)
            if done.returncode:
                self._write_settings()

    def _register_again(self, name: str) -> None:
        if name not in self._registered:
            self._registered.add(name)
            self._spans[name].append([self.now() + REGISTERED_AGAIN_SECONDS, FOREVER])

    def _kill(self, target: str) -> None:
        if not self._wait_for(lambda: self._is_ready(target)):
            self.say(f"there is no {target} to kill")
            return
        at = self.now()
        if self.service.kill(target):
            self._facts.kills.append(Kill(at, target))
            self.say(f"killed: {target}")

    def _is_ready(self, target: str) -> bool:
        """Whether the service is up, and in it is who is to be killed."""
        return self.service.is_up() and (
            target == "whole tree" or bool(self.service.of_role(target))
        )

    def _service_has_ended(self) -> None:
        """As one of its processes was killed; the others may have been at work until now."""
        self._facts.kills.append(Kill(self.now(), "the rest"))
        self.say("the service has ended, and is started again")

    def _begin_reading(self) -> None:
        path = self._warehouse.path
        self._wait_for(path.exists)
        command = [sys.executable, "-c", READER, str(path)]
        with self._lock:
            self._reader = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert self._reader.stdout
        if self._reader.stdout.readline():
            self.say("the reader holds visdiv.duckdb")

    def _end_reading(self) -> None:
        with self._lock:
            reader, self._reader = self._reader, None
        if reader:
            reader.kill()
            reader.wait()

    def _wait_for(self, is_so: Callable[[], bool], every: float = 0.5) -> bool:
        deadline = self.now() + RUN_PATIENCE
        while self.now() < deadline and not self.over.wait(every):
            if is_so():
                return True
        return False

    def _is_seen_low(self, name: str) -> bool:
        with contextlib.suppress(VisdivError, OSError):
            latest = self._warehouse.latest_evaluations()
            return any(
                each.dataset == name and (each.judged_score or 0.0) < THRESHOLD for each in latest
            )
        return False

    def _is_running(self, name: str) -> bool:
        tags = {"dagster/partition": name}
        started = dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.STARTED])
        with dg.DagsterInstance.from_config(str(self.service.home)) as instance:
            return bool(instance.get_runs(started, limit=1))

    # --- playing ---

    def start(self) -> None:
        """The service, and those who watch it."""
        with dg.DagsterInstance.from_config(str(self.service.home)):
            pass  # the databases are there before two processes make them
        self.service.start()
        for watch in (self._watch_partitions, self._watch_memory):
            threading.Thread(target=self._safely, args=(watch,), daemon=True).start()

    def warm_up(self, patience: float) -> bool:
        """Wait until each dataset was evaluated once."""
        deadline, done = self.now() + patience, -1
        while self.now() < deadline:
            time.sleep(3)
            with contextlib.suppress(VisdivError):
                before, done = done, len(self._warehouse.latest_evaluations())
                if done == len(self.datasets):
                    return True
                if done != before:
                    self.say(f"{done} of {len(self.datasets)} evaluated")
        return False

    def play(self, events: list[Event], seconds: float) -> None:
        """All of the schedule; each event waits for its time in a thread of its own."""
        threads = [
            threading.Thread(target=self._safely, args=(self._play, event), daemon=True)
            for event in events
        ]
        for thread in threads:
            thread.start()
        self.over.wait(max(0.0, seconds - self.now()))
        for thread in threads:
            thread.join(2 * RUN_PATIENCE)

    def _play(self, event: Event) -> None:
        if self.over.wait(max(0.0, event.at - self.now())):
            return
        self.say(" ".join(filter(None, [event.what, event.whom])))
        self.begin(event)
        if event.until is None or self.over.wait(max(0.0, event.until - self.now())):
            return
        if event.what != "fall for good":
            self.say(" ".join(filter(None, [event.what, event.whom, "is over"])))
            self.end(event)

    def _safely(self, act: Callable[..., None], *arguments: object) -> None:
        """A fault of the world is a finding, too."""
        try:
            act(*arguments)
        except Exception:  # noqa: BLE001
            if not self.over.is_set():
                self.say(f"the world itself fails: {traceback.format_exc()}")
                error = traceback.format_exc().strip().splitlines()[-1]
                self._facts.world.append(f"{arguments}: {error}")

    def _receive(self, recipient: str, title: str, body: str) -> None:
        self._received.append((recipient, self.now(), title, body))

    # --- facts ---

    def _watch_partitions(self) -> None:
        with dg.DagsterInstance.from_config(str(self.service.home)) as instance:
            while not self.over.wait(PARTITION_SECONDS):
                self._see_partitions(instance)

    def _see_partitions(self, instance: dg.DagsterInstance) -> None:
        # A moment that a fault began or ended in belongs to neither.
        at, fault = self.now(), self._settings_fault
        with contextlib.suppress(Exception):  # the database is in use, or on its way
            names = frozenset(instance.get_dynamic_partitions("datasets"))
            if fault == self._settings_fault:
                self._facts.partitions.append(Partitions(at, names, fault))

    def _watch_memory(self) -> None:
        while not self.over.wait(MEMORY_SECONDS):
            at = self.now()
            self._facts.memory += [Memory(at, *each) for each in self.service.memory()]

    def facts(self, *, whole: bool = False) -> Facts:
        """All there is to judge now; the history of evaluations only if it is to be `whole`."""
        facts = self._facts
        facts.sources = self._sources()
        latest = self._warehouse.latest_evaluations()
        facts.latest = {each.dataset: self._evaluated(each) for each in latest}
        if whole:
            facts.evaluations = [
                self._evaluated(each)
                for name in self.images
                for each in self._warehouse.history(name)
            ]
        with dg.DagsterInstance.from_config(str(self.service.home)) as instance:
            self._see_partitions(instance)
            facts.runs = [
                Run(
                    run.run_id,
                    run.job_name,
                    run.tags.get("dagster/partition", ""),
                    run.status.value,
                    run.is_finished,
                    dict(run.tags),
                    run.parent_run_id or "",
                )
                for run in instance.get_runs()
            ]
            storage = instance.event_log_storage
            facts.slots = {
                pool: [slot.run_id for slot in storage.get_concurrency_info(pool).claimed_slots]
                for pool in storage.get_concurrency_keys()
            }
        facts.recorded = self._recorded()
        facts.told, facts.wrong_messages = [], []
        for message in list(self._received):
            told, wrong = read_message(*message)
            facts.told += told
            facts.wrong_messages += [wrong] if wrong else []
        facts.registered = {
            name: [(begin, end) for begin, end in spans] for name, spans in self._spans.items()
        }
        facts.low = {name for name, each in self.images.items() if each.state != MANY}
        facts.scheduled = self.scheduled
        facts.night = f"{self.night:%Y-%m-%d}" if self.night else ""
        facts.at = self.now()
        return facts

    def _sources(self) -> dict[str, Stands]:
        found = {}
        for name, dataset in load_settings(self.folder / "visdiv.yaml").datasets.items():
            try:
                fingerprint = look(open_source(dataset.source))
                count = len(list_images(open_source(dataset.source)))
                found[name] = Stands(count, fingerprint)
            except Exception as error:  # noqa: BLE001
                found[name] = Stands(error=str(error))
        return found

    def _evaluated(self, each: Evaluation) -> Evaluated:
        return Evaluated(
            each.dataset,
            self._seconds(each.evaluated_at),
            each.n_images,
            each.n_failed,
            each.manifest_fingerprint,
            each.judged_score,
        )

    def _recorded(self) -> list[Recorded]:
        """What the service says it has to tell."""
        done = self._visdiv("alerts", "list", "--json", "--limit", "100000")
        if done.returncode:
            raise RuntimeError(f"`visdiv alerts list` fails: {done.stderr[-500:]}")
        return [
            Recorded(
                self._seconds(datetime.fromisoformat(alert["created_at"])),
                alert["dataset"],
                alert["condition"],
                alert["began"],
            )
            for alert in json.loads(done.stdout)["alerts"]
        ]

    def run_once_more(self, patience: float) -> str:
        """Ask for a run of a dataset, and see what becomes of it; its status."""
        name = self.datasets[0].name
        tags = json.dumps({"dagster/partition": name, "soak": "once more"})
        command = ["job", "launch", "-w", "workspace.yaml", "-j", "evaluate_dataset"]
        asked = self._command("dagster", *command, "--tags", tags)
        if asked.returncode:
            return f"not accepted: {asked.stderr.strip()[-300:]}"
        mine, deadline, status = dg.RunsFilter(tags={"soak": "once more"}), self.now(), ""
        deadline += patience
        with dg.DagsterInstance.from_config(str(self.service.home)) as instance:
            while self.now() < deadline:
                runs = instance.get_runs(mine)
                status = runs[0].status.value if runs else ""
                if any(run.is_success for run in runs) or (
                    runs and all(run.is_finished for run in runs)
                ):
                    break
                time.sleep(1)
        return status

    def _visdiv(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._command("visdiv", *arguments)

    def _command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name(name)), *arguments],
            cwd=self.folder,
            env=self.service.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    # --- the end ---

    def close(self, *, keep: bool) -> list[str]:
        """End all processes and servers; tells what the service left."""
        self.over.set()
        self.mend()
        left = self.service.stop()
        for hook in self.hooks.values():
            hook.close()
        self.mail.close()
        self.images_server.close()
        self.disk.close(keep=keep)
        return left


def seen(told: list[Told]) -> dict[str, int]:
    """How many changes each recipient was told of."""
    counts: dict[str, int] = defaultdict(int)
    for each in told:
        counts[each.recipient] += 1
    return dict(counts)
