"""Several processes that use one store at once: nothing is lost, and little is done twice."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from visdiv_assets.embedding import incremental
from visdiv_assets.errors import Unreachable
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.store.store import Store
from visdiv_assets_tests.dagster_dev import ROOT
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image
from visdiv_assets_tests.store.homes import BucketHome

# Embeds a dataset, and writes down when it began to embed each content: it asked before whether
# others have done so.
RUN = """
import json, sys, threading, time
from pathlib import Path
from visdiv_assets.embedding import incremental
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.store import segments
from visdiv_assets.store.bucket import Bucket
from visdiv_assets.store.cache import Cache
from visdiv_assets.store.objects import Folder
from visdiv_assets.store.store import Store
from visdiv_assets_tests.embedding.fakes import FakeEmbedder

told = json.loads(sys.argv[1])
segments.SEGMENT_ROWS = 8
incremental.LOOK_AGAIN_SECONDS = 0.0
claim, look_up = incremental._Claim.__call__, incremental._Claim.look_up
asked, looked_up = {}, {}

def looking_up(self, keys):  # shortly before each of them is claimed
    now = time.time()
    for key in keys:
        looked_up.setdefault((threading.get_ident(), key), now)
    look_up(self, keys)

def claiming(self, key, at):
    now = looked_up.pop((threading.get_ident(), key), time.time())
    wanted = claim(self, key, at)
    if wanted:
        asked.setdefault(key.hex(), now)
    return wanted

incremental._Claim.__call__, incremental._Claim.look_up = claiming, looking_up

# While one thread looks for what others have committed, the others go by the look before. Here,
# each waits for a look of its own, which begins after it has asked.
look, turn = incremental._Known._committed_since, threading.Lock()

def looking(self):
    with turn:
        return look(self)

incremental._Known._committed_since = looking
if "folder" in told:
    objects = Folder(Path(told["folder"]))
else:
    objects = Bucket(told["uri"], told["options"], Cache(Path(told["cache"]), 10**9))
source = DirectorySource(Path(told["images"]))
print("ready", flush=True)
sys.stdin.readline()
index, embedded = incremental.embed_manifest(
    told["dataset"], list_images(source), source, FakeEmbedder(), Store(objects)
)
print(json.dumps({"asked": asked, "n_images": index.n_images, "embedded": embedded}))
"""


def embed_at_once(place, folders, cache):
    """What each of several processes tells, which embed these folders at the same time."""
    processes = []
    for number, folder in enumerate(folders):
        told = {"images": str(folder), "dataset": f"dataset{number}"}
        if isinstance(place, BucketHome):
            told |= {"uri": place.uri, "options": place.options, "cache": str(cache / str(number))}
        else:
            told["folder"] = str(place.root)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN, json.dumps(told)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.communicate()[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def written(place):
    """When each content was committed for the first time."""
    store, times = place.store(), {}
    for name in store.segment_names("fake"):
        keys = f"embeddings/fake/{name}.parquet"
        if isinstance(place, BucketHome):
            changed = store.objects.about(keys).changed + 1.0  # it tells whole seconds
        else:
            # When it got its name, by a clock that ticks a few hundred times a second.
            changed = (place.root / keys).stat().st_ctime + 0.25
        for key in store.segment_keys("fake", name)[0]:
            content = bytes(key).ljust(16, b"\0").hex()
            times[content] = min(changed, times.get(content, changed))
    return times


@pytest.mark.slow
def test_processes_share_a_store_and_embed_nothing_that_another_has_committed(place, tmp_path):
    """Eight on a disk, two in a bucket: each has images of its own, and some of everybody's."""
    n_processes = 2 if isinstance(place, BucketHome) else 8
    folders = []
    for process in range(n_processes):
        folder = tmp_path / f"images/{process}"
        for number in range(40):
            # Those of everybody come at different times.
            own, shared = 1000 * (process + 1) + number, number
            write_image(folder / f"{number:02}-own.png", seed=own)
            write_image(folder / f"{(number + 7 * process) % 40:02}-shared.png", seed=shared)
        folders.append(folder)
    told = embed_at_once(place, folders, tmp_path / "caches")
    assert [each["n_images"] for each in told] == [80] * n_processes
    committed = written(place)
    assert len(committed) == 40 * n_processes + 40
    asked = defaultdict(list)
    for each in told:
        for content, moment in each["asked"].items():
            asked[content].append(moment)
    assert asked.keys() == committed.keys()
    for content, moments in asked.items():
        assert max(moments) <= committed[content]  # it was in flight
    store: Store = place.store()
    for number in range(n_processes):
        [index] = store.earlier_indexes(f"dataset{number}")
        assert index.n_images == 80
        for segment in index.segments():
            assert len(store.rows("fake", segment))


@pytest.mark.slow
def test_who_comes_later_finds_what_was_committed_meanwhile(place, tmp_path, monkeypatch):
    """One process embeds a folder while another has embedded half of it since it began."""

    monkeypatch.setattr(incremental, "LOOK_AGAIN_SECONDS", 0.0)
    everything, half = tmp_path / "all", tmp_path / "half"
    for number in range(60):
        write_image(everything / f"{number:02}.png", seed=number)
        if number >= 40:
            write_image(half / f"{number:02}.png", seed=number)

    def embed(dataset, folder, embedder):
        source = DirectorySource(Path(folder))
        return incremental.embed_manifest(
            dataset, list_images(source), source, embedder, place.store()
        )

    class Overtaken(FakeEmbedder):
        def embed(self, pixels):
            if not self.batches:
                embed("other", half, FakeEmbedder())
            return super().embed(pixels)

    embedder = Overtaken()
    index, embedded = embed("dataset", everything, embedder)
    assert index.n_images == 60
    assert 40 <= embedded < 60  # some of the others were on their way already
    assert index.n_failed == 0


def test_a_look_for_what_others_have_committed_that_fails_costs_no_run(
    place, tmp_path, monkeypatch
):
    failed = []

    def fail(known):
        failed.append(known)
        raise Unreachable("the bucket does not answer")

    monkeypatch.setattr(incremental, "LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(incremental._Known, "_listed", fail)
    for number in range(6):
        write_image(tmp_path / f"images/{number}.png", seed=number)
    source, embedder = DirectorySource(tmp_path / "images"), FakeEmbedder()
    index, embedded = incremental.embed_manifest(
        "dataset", list_images(source), source, embedder, place.store()
    )
    assert (index.n_images, embedded) == (6, 6)
    assert failed
