"""`visdiv doctor`: it finds what is wrong, names it, and works where nothing else does."""

import shutil
import sys
from functools import partial
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner, Result

from visdiv_assets.cli import doctor
from visdiv_assets.cli.main import app
from visdiv_assets.embedding.codecs import OPTIONAL, SAMPLES
from visdiv_assets.embedding.decoders import Decoders
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.settings.model import EmbedderSettings, Settings
from visdiv_assets_tests.conftest import Demo

START = "\nfrom visdiv_assets.embedding import decode_worker\ndecode_worker.main()"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The model that is always there, and a store that is not there yet."""
    embedder = EmbedderSettings(weights=ONNX_CHECKPOINT, device="cpu")
    return Settings(store=tmp_path / "store", embedder=embedder)


@pytest.fixture
def store(settings: Settings, demo: Demo) -> Path:
    """A store in use: the 213 demo photographs, scored."""
    return Path(shutil.copytree(demo.root, settings.store))


def examined(settings: Settings) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(settings)}


def problems(settings: Settings) -> dict[str, str]:
    return {
        subject: finding.detail for subject, finding in examined(settings).items() if not finding.ok
    }


def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> Result:
    """The command, with these settings."""
    config = settings.store.parent / "visdiv.yaml"
    config.write_text(
        f"store: {settings.store}\nembedder: {{weights: {settings.embedder.weights}}}\n"
    )
    monkeypatch.delenv("VISDIV_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    return CliRunner().invoke(app, ["doctor", "--config", str(config)])


# --- what it finds ---


def test_without_a_store_all_is_well(settings, monkeypatch):
    assert problems(settings) == {}
    assert examined(settings)["store"].detail == f"{settings.store}, not created yet"
    assert run(settings, monkeypatch).exit_code == 0
    assert not settings.store.exists()


def test_it_says_what_is_installed_and_what_the_model_runs_on(settings):
    findings = examined(settings)
    assert findings["duckdb"].detail == duckdb.__version__
    assert findings["weights"].detail.startswith(f"{ONNX_CHECKPOINT}: {ONNX_CHECKPOINT} (onnx, SHA")
    assert findings["model"].detail.startswith("ONNX Runtime ")
    assert findings["model"].detail.endswith(", 512 dimensions")


def test_of_a_healthy_store_it_says_what_is_in_it(settings, store, demo, monkeypatch):
    findings = examined(settings)
    assert problems(settings) == {}
    assert f"{demo.evaluation.model_id}: 213 images in " in findings["embeddings"].detail
    assert findings["results"].detail.startswith("1 dataset scored, schema ")
    assert run(settings, monkeypatch).exit_code == 0


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("damage", ["cut off", "emptied", "overwritten"])
def test_a_damaged_segment_is_a_problem(settings, store, suffix, damage):
    [path, *_] = store.glob(f"embeddings/*/*{suffix}")
    content = path.read_bytes()
    path.write_bytes({"cut off": content[:100], "emptied": b"", "overwritten": b"x" * 5000}[damage])
    assert list(problems(settings)) == ["embeddings"]
    assert (
        "1 of them damaged; their images will be embedded again"
        in (problems(settings)["embeddings"])
    )


def test_a_results_file_that_is_garbage_is_a_problem(settings, store):
    (store / "visdiv.duckdb").write_bytes(b"garbage" * 1000)
    assert list(problems(settings)) == ["results"]
    assert problems(settings)["results"].startswith(
        f"cannot use the results database {store}/visdiv.duckdb"
    )


def test_a_results_file_of_a_newer_version_is_a_problem(settings, store):
    with duckdb.connect(str(store / "visdiv.duckdb")) as connection:
        connection.execute("INSERT INTO schema_version VALUES (99, now())")
    assert list(problems(settings)) == ["results"]
    assert "has schema version 99" in problems(settings)["results"]
    assert "upgrade visdiv" in problems(settings)["results"]


def test_an_evaluation_of_the_future_is_a_problem_with_a_clock(settings, store):
    with duckdb.connect(str(store / "visdiv.duckdb")) as connection:
        connection.execute("UPDATE evaluations SET evaluated_at = now() + INTERVAL 5 YEAR")
    assert list(problems(settings)) == ["clock"]
    assert "a clock was wrong then, or is now" in problems(settings)["clock"]


def test_a_file_in_place_of_the_store_is_a_problem(settings):
    settings.store.touch()
    assert problems(settings) == {
        "store": f"{settings.store} is not a folder that can be written to"
    }


def test_a_full_disk_is_a_problem(settings, store, monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1 << 80)
    assert list(problems(settings)) == ["store"]


def test_weights_that_are_not_there_are_a_problem(settings):
    embedder = EmbedderSettings(weights="nowhere/sscd.pt")
    found = problems(settings.model_copy(update={"embedder": embedder}))
    assert list(found) == ["weights"]
    assert found["weights"].startswith("nowhere/sscd.pt: there are no weights at nowhere/sscd.pt")


def test_weights_that_cannot_run_where_the_settings_want_them_are_a_problem(settings):
    embedder = EmbedderSettings(weights=ONNX_CHECKPOINT, device="cuda:7")
    found = problems(settings.model_copy(update={"embedder": embedder}))
    assert list(found) == ["model"]
    assert "cuda:7" in found["model"]


def test_a_missing_package_is_a_problem_unless_it_is_optional(settings, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package", "no-such-extra"))
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-extra",))
    optional = doctor.Finding(True, "no-such-extra", "not installed")
    assert examined(settings)["no-such-extra"] == optional
    assert problems(settings) == {"no-such-package": "not installed"}


def test_it_decodes_a_picture_of_each_format(settings):
    findings = examined(settings)
    assert {"JPEG", "PNG", "AVIF", "WebP", "JPEG 2000", "TIFF", "HEIC"} <= findings.keys()
    assert all(findings[name].detail == "ok" for name in SAMPLES if name not in OPTIONAL)


def test_a_codec_that_cannot_be_loaded_is_a_problem(settings, monkeypatch):
    # What a decoder process says of the extension of another system.
    heif = (sys.executable, "-c", "import sys; sys.modules['_pillow_heif'] = None" + START)
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    monkeypatch.setattr(doctor, "Decoders", partial(Decoders, command=heif))
    assert list(problems(settings)) == ["HEIC"]
    assert problems(settings)["HEIC"].startswith("broken: the HEIC codec cannot be loaded")


def test_a_format_without_its_codec_is_a_problem_unless_it_is_optional(settings, monkeypatch):
    missing = "import sys; sys.modules['PIL._webp'] = sys.modules['pillow_heif'] = None"
    command = (sys.executable, "-c", missing + START)
    impatient = partial(Decoders, command=command, sleep=lambda seconds: None)
    monkeypatch.setattr(doctor, "Decoders", impatient)
    assert examined(settings)["HEIC"].ok
    assert examined(settings)["HEIC"].detail.startswith("missing: HEIC needs a codec; run `pip")
    assert list(problems(settings)) == ["WebP"]
    assert problems(settings)["WebP"].startswith("missing: ")


@pytest.mark.slow
def test_a_decoder_that_does_not_start_is_a_problem(settings, monkeypatch):
    command = (sys.executable, "-c", "exit(1)")
    monkeypatch.setattr(doctor, "Decoders", partial(Decoders, command=command))
    assert list(problems(settings)) == ["decoder"]
    assert "the decoder does not start" in problems(settings)["decoder"]


# --- how it says so ---


def test_problems_exit_with_1_and_are_marked(settings, store, monkeypatch):
    (store / "visdiv.duckdb").write_bytes(b"garbage")
    shown = run(settings, monkeypatch)
    assert shown.exit_code == 1
    marked = [line for line in shown.stdout.splitlines() if not line.startswith("ok ")]
    assert [line.split()[:2] for line in marked] == [["problem", "results"]]


def test_a_path_is_never_cut_off_however_narrow_the_terminal(settings, store, monkeypatch):
    shown = run(settings, monkeypatch, columns=40)
    assert f"  {store}, " in shown.stdout
    assert "…)" in shown.stdout  # only the digest of the weights is shortened
    assert shown.stdout.count("…") == 1


def test_settings_that_make_no_sense_are_an_error_in_one_sentence(tmp_path):
    (tmp_path / "visdiv.yaml").write_text("stor: x")
    shown = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "visdiv.yaml")])
    assert shown.exit_code == 1
    assert shown.stderr.startswith(f"error: {tmp_path}/visdiv.yaml: 'stor' is not a setting")
    assert shown.stdout == ""
