"""The command `visdiv`: what it prints, where, and the code it exits with."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from visdiv_assets import __version__
from visdiv_assets.cli.main import app
from visdiv_assets.store.store import Store
from visdiv_assets_tests.conftest import Demo

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:4]
COMMAND = Path(sys.executable).with_name("visdiv")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a store that does not exist yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISDIV_CONFIG", raising=False)
    monkeypatch.setenv("VISDIV_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "store"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four photographs."""
    return write_photos(tmp_path / "photos")


def write_photos(folder: Path, count: int = len(PHOTOS)) -> Path:
    folder.mkdir(parents=True)
    for photo in PHOTOS[:count]:
        shutil.copy(photo, folder)
    return folder


def visdiv(*arguments: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command."""
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environment,
        check=False,
    )


def n_evaluations(store: Path) -> int:
    if not (store / "visdiv.duckdb").exists():
        return 0
    with duckdb.connect(str(store / "visdiv.duckdb"), read_only=True) as connection:
        [count] = connection.execute("SELECT count(*) FROM evaluations").fetchone() or (0,)
    return int(count)


def n_rows(store: Path) -> int:
    """How many embeddings the store holds."""
    everything = Store(store)
    return sum(
        len(everything.rows(model_id, segment))
        for model_id in everything.model_ids()
        for segment in everything.segment_names(model_id)
    )


# --- visdiv score: the result ---


def test_a_folder_gives_a_table_for_people_on_stdout(photos, store):
    shown = run("score", photos)
    assert shown.returncode == 0
    assert re.search(
        r" photos-[0-9a-f]{8} +4 +0\.00\d\d +too few +too few to +\d\.\d +\d\.\d ", shown.stdout
    )
    assert shown.stderr == ""
    assert n_evaluations(store) == 1


def test_what_is_left_out_for_its_name_is_told_in_one_line(photos):
    for name in ("a.jxl", "b.jxl", "c", ".d.jpg"):
        (photos / name).touch()
    (photos / "@eaDir").mkdir()
    shown = run("score", photos)
    assert shown.returncode == 0
    assert re.fullmatch(
        r"photos-[0-9a-f]{8}: 4 files left out by their names: 2 × \.jxl, 1 without extension, "
        r"1 hidden; 1 folder left out, hidden or of the system: 1 × @eaDir; `include` can take "
        r"them\n",
        shown.stderr,
    )
    left_out = json.loads(run("score", photos, "--json").stdout)["left_out"]
    assert left_out == {
        "files": 4,
        "extensions": {".jxl": 2, "": 1},
        "hidden_files": 1,
        "folders": {"@eaDir": 1},
        "by_include_and_exclude": 0,
    }


def test_what_is_left_out_is_told_even_if_there_is_no_score(photos):
    for image in sorted(photos.iterdir())[1:]:
        image.rename(image.with_suffix(".jxl"))
    shown = run("score", photos)
    assert shown.returncode == 1
    assert "3 files left out by their names: 3 × .jxl" in shown.stderr


def test_json_is_one_object_on_stdout_and_nothing_else(photos):
    (photos / "broken.jpg").touch()
    shown = run("score", photos, "--json")
    assert shown.returncode == 0
    assert shown.stdout.count("\n") == 1
    result = json.loads(shown.stdout)
    kinds = {key: type(value) for key, value in result.items()}
    assert kinds == {
        "dataset": str,
        "evaluated_at": str,
        "score": type(None),
        "basis": str,
        "plain_score": float,
        "n_images": int,
        "n_failed": int,
        "n_flat": int,
        "n_listed": int,
        "dimension": int,
        "corrected_score": type(None),  # of four images nothing can be told
        "corrected_low": type(None),
        "corrected_high": type(None),
        "corrected_effective_rank": type(None),
        "corrected_participation_ratio": type(None),
        "effective_rank_low": type(None),
        "effective_rank_high": type(None),
        "participation_ratio_low": type(None),
        "participation_ratio_high": type(None),
        "sampling_unit": str,
        "n_units": float,
        "other_score": type(None),
        "other_low": type(None),
        "other_high": type(None),
        "two_readings": type(None),
        "estimator": type(None),
        "meaning": type(None),
        "spread": float,
        "vendi": float,
        "rke": float,
        "effective_rank": float,
        "participation_ratio": float,
        "diversity_score": float,
        "rating": str,
        "stars": int,
        "model_id": str,
        "seconds": float,
        "left_out": dict,
    }
    assert (result["n_images"], result["n_failed"], result["dimension"]) == (4, 1, 512)
    assert 1 < result["participation_ratio"] <= result["effective_rank"] <= 3
    assert (result["rating"], result["stars"]) == ("too few to tell", 0)
    assert shown.stderr == "1 image could not be embedded:\n  broken.jpg: the file is empty\n"


def test_another_sampling_unit_is_wrong_usage(photos, store):
    shown = run("score", photos, "--sampling-unit", "clip")
    assert shown.returncode == 2
    assert "use near-duplicates, row" in shown.stderr.replace("│", "").replace("\n", " ")
    assert not store.exists()


@pytest.mark.slow
def test_a_terminal_without_stars_and_boxes_gets_the_table_all_the_same(photos):
    shown = run("score", photos, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0
    assert "too few" in shown.stdout
    assert "+---" in shown.stdout


def test_a_reader_that_goes_away_is_no_error(photos):
    with subprocess.Popen(
        [COMMAND, "score", photos, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_a_score_under_the_required_one_exits_with_3_and_is_printed_all_the_same(config, store):
    config.write_text("datasets: {mine: {source: ../photos, basis: plain}}")
    shown = visdiv("score", "--config", config, "--json", "--fail-under", "0.9")
    assert shown.exit_code == 3
    assert json.loads(shown.stdout)["n_images"] == 4
    assert shown.stderr == "mine is below the required score 0.9\n"
    assert n_evaluations(store) == 1


def test_a_score_that_cannot_be_told_is_not_the_required_one(photos):
    shown = visdiv("score", photos, "--json", "--fail-under", "0.001")
    assert shown.exit_code == 3
    assert re.fullmatch(
        r"photos-\w+ has too few images for the required score 0\.001\n", shown.stderr
    )


def test_a_score_that_is_high_enough_exits_with_0(config):
    config.write_text("datasets: {mine: {source: ../photos, basis: plain}}")
    assert visdiv("score", "--config", config, "--fail-under", "0.001").exit_code == 0


@pytest.mark.parametrize("required", ["2", "-0.1", "nan", "much"])
def test_a_required_score_that_no_dataset_can_have_is_wrong_usage(photos, store, required):
    shown = visdiv("score", photos, "--fail-under", required)
    assert shown.exit_code == 2
    assert "Invalid value for '--fail-under'" in shown.stderr
    assert not store.exists()


def test_a_second_call_embeds_nothing_and_gives_the_same_score(photos, store):
    first, second = (json.loads(visdiv("score", photos, "--json").stdout) for _ in range(2))
    assert first["diversity_score"] == second["diversity_score"]
    assert n_rows(store) == 4
    assert n_evaluations(store) == 2


# --- visdiv score: which datasets ---


@pytest.fixture
def config(tmp_path: Path, photos: Path) -> Path:
    """Settings in a folder of their own, that register two datasets."""
    write_photos(tmp_path / "others", 3)
    path = tmp_path / "settings/my.yaml"
    path.parent.mkdir()
    path.write_text("datasets: {mine: {source: ../photos}, theirs: {source: ../others}}")
    return path


def scored(*arguments: str | Path) -> list[tuple[str, int]]:
    """Name and number of images of each dataset that was scored."""
    shown = visdiv("score", "--json", *arguments)
    assert shown.exit_code == 0, shown.stderr
    results = [json.loads(line) for line in shown.stdout.splitlines()]
    return [(result["dataset"], result["n_images"]) for result in results]


def test_without_a_path_all_datasets_of_the_settings_are_scored(config):
    assert scored("--config", config) == [("mine", 4), ("theirs", 3)]


def test_a_dataset_of_the_settings_is_scored_by_name(config):
    assert scored("theirs", "--config", config) == [("theirs", 3)]


@pytest.mark.parametrize("path", ["photos", "./photos", "settings/../photos", "link"])
def test_the_folder_of_a_registered_dataset_is_scored_under_its_name(config, photos, path):
    Path("link").symlink_to(photos)
    assert scored(path, "--config", config) == [("mine", 4)]


def test_a_dataset_goes_before_a_folder_of_the_same_name_which_has_another(config):
    write_photos(Path("theirs"), 2)
    [(name, n_images)] = scored("theirs", "--config", config)
    assert name == "theirs"
    assert n_images != 2
    [(name, n_images)] = scored("./theirs", "--config", config)
    assert name.startswith("theirs-")
    assert n_images == 2
    told = visdiv("history", "theirs", "--config", config).stderr
    assert told == (
        "theirs is taken as the dataset of that name; ./theirs names the file or folder\n"
    )


def test_one_folder_has_one_name_however_it_is_written(photos):
    names = {
        scored(path)[0][0] for path in ("photos", photos, f"file://{photos}", "photos/../photos/")
    }
    assert len(names) == 1


def test_one_dataset_that_cannot_be_scored_does_not_hold_up_the_others(config, store):
    config.write_text("datasets: {gone: {source: nowhere}, mine: {source: ../photos}}")
    shown = visdiv("score", "--config", config)
    assert shown.exit_code == 1
    assert f"error: no such file or directory: {config.parent}/nowhere\n" in shown.stderr
    assert " mine " in shown.stdout
    assert n_evaluations(store) == 1


def test_the_example_for_the_cpu_scores_the_demo_photographs(demo: Demo, store):
    shutil.copytree(demo.root, store)  # embeddings and all
    shown = visdiv("score", "--config", ROOT / "examples/configs/cpu.yaml", "--json")
    assert shown.exit_code == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert (result["dataset"], result["n_images"]) == ("demo_photos", 213)
    assert result["diversity_score"] == pytest.approx(0.2892, abs=0.002)


# --- visdiv score: bad input ---


def nothing() -> None:
    pass


def empty_folder() -> None:
    Path("x/deep/er").mkdir(parents=True)


def text_files() -> None:
    Path("x").mkdir()
    Path("x/a.txt").write_text("I am text")
    Path("x/README").touch()


def text_files_that_claim_to_be_images() -> None:
    Path("x").mkdir()
    Path("x/a.jpg").write_text("I am text")
    Path("x/b.png").touch()


def one_image() -> None:
    write_photos(Path("x"), 1)


def one_image_among_broken_ones() -> None:
    write_photos(Path("x"), 1)
    Path("x/broken.jpg").touch()


def a_file() -> None:
    shutil.copy(PHOTOS[0], "x")


def a_link_to_itself() -> None:
    Path("x").symlink_to("x")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (nothing, "no such file or directory: .*/x"),
        (empty_folder, r"there are no image files in .*/x \(it is empty\)"),
        (text_files, r"there are no image files in .*/x \(2 files left out by their names: .*\)"),
        (text_files_that_claim_to_be_images, "none of the 2 images in .*/x can be decoded .*"),
        (one_image, "x-[0-9a-f]{8} has only 1 decodable image; diversity needs at least 2"),
        (one_image_among_broken_ones, "x-[0-9a-f]{8} has only 1 decodable image; .*"),
        (a_file, ".*/x is not a directory"),
        (a_link_to_itself, "cannot list .*/x: .*"),
    ],
)
def test_a_folder_that_cannot_be_scored_is_an_error_in_one_sentence(make, sentence, store):
    make()
    shown = visdiv("score", "x", "--json")
    assert shown.exit_code == 1
    assert re.fullmatch(f"error: {sentence}\n", shown.stderr)
    assert shown.stdout == ""
    assert n_evaluations(store) == 0


def test_an_error_of_the_real_command_is_one_line_and_no_traceback(store):
    shown = run("score", "nowhere")
    assert shown.returncode == 1
    assert shown.stderr == f"error: no such file or directory: {Path.cwd()}/nowhere\n"
    assert shown.stdout == ""
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name a source to score, or register datasets with visdiv add"),
        (("",), "the name of the source to score is empty"),
        (("~nobody-of-that-name/photos",), "no such file or directory: .*/~nobody-of-that-name/.*"),
        (
            ("ftp://host/photos",),
            "cannot read images from ftp://; use a path or one of abfs://, abfss://, az://, "
            "gs://, http://, https://, s3://, s3a://",
        ),
        (("photos", "--config", "missing.yaml"), "cannot read .* missing.yaml: No such file .*"),
        (("photos", "--config", "photos"), "cannot read the settings file photos: Is a directory"),
    ],
)
def test_what_cannot_be_meant_is_an_error_in_one_sentence(photos, store, arguments, sentence):
    shown = visdiv("score", *arguments)
    assert shown.exit_code == 1
    assert re.fullmatch(f"error: {sentence}\n", shown.stderr)
    assert not store.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("store: [", "visdiv.yaml is not a valid YAML file: line 1: .*"),
        ("stor: x", "visdiv.yaml: 'stor' is not a setting.*"),
        ("store: '[red]x[/bold]'\nstor: x", "visdiv.yaml: 'stor' is not a setting.*"),
    ],
)
def test_settings_that_make_no_sense_are_an_error_in_one_sentence(photos, store, text, sentence):
    Path("visdiv.yaml").write_text(text)
    shown = visdiv("score", photos)
    assert shown.exit_code == 1
    assert re.fullmatch(f"error: {sentence}\n", shown.stderr)
    assert not store.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("datasets: {a/b: {source: x}}", "visdiv.yaml: 'datasets.a/b': a dataset name has .*"),
        ("datasets: {..: {source: x}}", r"visdiv.yaml: 'datasets...': .*; got '\.\.'.*"),
        ('datasets: {"a\\n": {source: x}}', r"visdiv.yaml: 'datasets.a\\n': .*"),
    ],
)
def test_a_faulty_dataset_does_not_hold_up_a_folder(photos, store, text, sentence):
    Path("visdiv.yaml").write_text(text)
    shown = visdiv("score", photos)
    assert shown.exit_code == 0
    assert re.fullmatch(f"warning: {sentence}\n", shown.stderr)
    assert n_evaluations(store) == 1


@pytest.mark.parametrize("place", ["/proc/nowhere", "{file}", "{file}/deeper"])
def test_a_store_that_cannot_be_written_is_an_error_in_one_sentence(photos, monkeypatch, place):
    Path("file").touch()
    monkeypatch.setenv("VISDIV_STORE", place.format(file=Path.cwd() / "file"))
    shown = visdiv("score", photos)
    assert shown.exit_code == 1
    assert re.fullmatch("error: /.*: .*\n", shown.stderr)


# --- visdiv score: images in an order ---


def test_images_that_are_alike_by_name_are_told_and_the_result_is_the_same(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for photo in PHOTOS:
        with Image.open(photo) as picture:
            for frame in range(6):
                box = (4 * frame, 4 * frame, picture.width, picture.height)
                picture.crop(box).save(folder / f"{photo.stem} {frame}.png")
    shown = visdiv("score", folder, "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["n_images"] == 24
    [line] = shown.stderr.splitlines()
    assert re.fullmatch(
        r"clips-[0-9a-f]{8}: Images next to each other by name are much more alike \(0\.9\d\) than "
        r"others \(0\.\d\d\)\. If .* it is no sample of it; and if .* with `sampling_unit`\.",
        line,
    )


# --- visdiv score: images that fail ---


def test_images_that_fail_are_counted_and_listed_with_a_reason_and_abort_nothing(photos, store):
    (photos / "empty.jpg").touch()
    (photos / "text.png").write_text("I am not an image")
    (photos / "dangling.jpg").symlink_to("nowhere")
    (photos / "half.jpg").write_bytes(PHOTOS[0].read_bytes()[:5000])
    Image.new("RGB", (40, 30)).save(photos / "whole.png")
    shown = visdiv("score", photos, "--json")
    assert shown.exit_code == 0
    result = json.loads(shown.stdout)
    assert (result["n_images"], result["n_failed"]) == (5, 4)
    heading, *failures = shown.stderr.splitlines()
    assert heading == "4 images could not be embedded:"
    assert failures[-2:] == [
        "1 picture is one flat colour, so there is nothing to see in:",
        "  whole.png",
    ]
    failures = failures[:-2]
    listed = dict(line.strip().split(": ", 1) for line in failures)
    assert list(listed) == ["dangling.jpg", "empty.jpg", "half.jpg", "text.png"]
    assert listed["empty.jpg"] == "the file is empty"
    assert "No such file" in listed["dangling.jpg"]
    assert "truncated" in listed["half.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "as_shown"),
    [
        ("[bold]x[/].jpg", "[bold]x[/].jpg"),
        ("[/red].jpg", "[/red].jpg"),
        (":cat:.jpg", ":cat:.jpg"),
        ("猫.jpg", "猫.jpg"),
        ("back\\slash\\.jpg", "back\\slash\\.jpg"),
        ("new\nline.jpg", "new\\nline.jpg"),
        ("tab\t.jpg", "tab\\t.jpg"),
        ("clear\x1b[2J.jpg", "clear\\x1b[2J.jpg"),
        pytest.param(
            os.fsdecode(b"\xff.jpg"),
            "\\xff.jpg",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no such names elsewhere"),
        ),
    ],
)
def test_names_of_failed_images_are_shown_literally(photos, name, as_shown):
    path = photos / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("I am not an image")
    shown = visdiv("score", photos)
    assert shown.exit_code == 0
    assert shown.stderr.splitlines()[1].startswith(f"  {as_shown}: ")


def test_a_log_gets_all_failures_however_many(photos):
    for number in range(30):
        (photos / f"broken {number}.jpg").write_text("I am not an image")
    failures = visdiv("score", photos, "--json").stderr.splitlines()
    assert failures[0] == "30 images could not be embedded:"
    assert len(failures) == 31


# --- a terminal, and Ctrl-C ---


# `visdiv`, with a model that stops after two batches until the command is interrupted.
STOPS_HALFWAY = """
import signal, threading
from visdiv_assets.cli.main import main
from visdiv_assets.embedding.embedder import SSCDEmbedder

interrupted, calls, embed = threading.Event(), [], SSCDEmbedder.embed

def embed_two_batches(self, pixels):
    calls.append(pixels)
    if len(calls) > 2:
        interrupted.wait()
    return embed(self, pixels)

def interrupt(*_):
    interrupted.set()
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
SSCDEmbedder.embed = embed_two_batches
main()
"""


class Terminal:
    """A command whose stderr is a terminal of 100 columns."""

    def __init__(self, *arguments: str | Path) -> None:
        self._screen, terminal = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", STOPS_HALFWAY, *arguments],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=os.environ | {"COLUMNS": "100", "TERM": "xterm"},
        )
        os.close(terminal)
        self.text = ""

    def read(self) -> bool:
        """Take what is printed next; False at the end."""
        select.select([self._screen], [], [])
        try:
            printed = os.read(self._screen, 65_536)
        except OSError:  # how Linux says that nobody has the other end any more
            return False
        self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode(errors="replace"))
        return bool(printed)

    def read_until(self, pattern: str) -> None:
        while not re.search(pattern, self.text):
            assert self.read(), self.text

    def finish(self) -> int:
        while self.read():
            pass
        return self.process.wait()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """48 images that take a while, all different: a JPEG may have anything behind its end."""
    (tmp_path / "many").mkdir()
    for number in range(48):
        content = PHOTOS[number % len(PHOTOS)].read_bytes() + b"%d" % number
        (tmp_path / f"many/{number:02}.jpg").write_bytes(content)
    return tmp_path / "many"


@pytest.fixture
def terminal(many: Path) -> Iterator[Terminal]:
    """`visdiv score` in a terminal, some images done."""
    terminal = Terminal("score", many, "--json")
    terminal.read_until(r" [1-9]\d*/48 .* left")
    yield terminal
    terminal.process.kill()


@pytest.mark.skipif(os.name != "posix", reason="needs pseudo-terminals and signals")
def test_ctrl_c_keeps_what_is_done_and_the_next_call_does_the_rest(terminal, many, store):
    assert re.search(
        r"many-\w+ ━.* \d+/48 \d+\.\d images/s, limit: (the model|reading|decoding|writing) "
        r"(\d:\d\d:\d\d|-:--:--) left",
        terminal.text,
    )

    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130
    assert terminal.text.splitlines()[-1].endswith(
        "interrupted; finished embeddings are kept, run the same command to continue"
    )
    assert "Traceback" not in terminal.text
    assert terminal.process.stdout.read() == b""
    assert n_evaluations(store) == 0
    assert 0 < n_rows(store) < 48

    shown = visdiv("score", many, "--json")
    assert json.loads(shown.stdout)["n_images"] == 48
    assert n_rows(store) == 48  # none of them twice
    assert n_evaluations(store) == 1


# --- help ---


def test_the_version_is_shown():
    shown = visdiv("--version")
    assert (shown.exit_code, shown.stdout) == (0, f"visdiv {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("-h",), ("score", "--help"), ("doctor", "--help")])
def test_help_fits_a_terminal_of_80_columns(arguments):
    lines = visdiv(*arguments).output.splitlines()
    assert max(len(line) for line in lines) <= 80


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        (("--help",), "visdiv score ~/photos"),
        (("score", "--help"), "visdiv score ~/photos --fail-under 0.3"),
        (("score", "--help"), "visdiv score ~/photos --json | jq .score"),
    ],
)
def test_help_shows_examples(arguments, example):
    shown = visdiv(*arguments)
    assert shown.exit_code == 0
    assert example in shown.stdout


def test_help_says_what_the_exit_codes_mean():
    shown = visdiv("score", "--help").stdout
    assert "0 scored   1 error   2 wrong usage   3 below --fail-under   130 interrupted" in shown


def test_outside_a_checkout_the_demo_says_so():
    shown = visdiv("demo")
    assert shown.exit_code == 1
    assert shown.stderr == (
        "error: there is no visdiv.yaml here; the demo's photographs come with the source code: "
        "git clone https://github.com/visdiv/visdiv_assets, and run `make demo` there\n"
    )
