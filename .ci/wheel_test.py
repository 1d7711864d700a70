"""Does the wheel work where there is no checkout? Run it by `make wheel-test`.

Builds the sdist, the wheel from that, and installs the wheel with the pinned dependencies under
each supported Python that this machine has. There, in an empty folder with an empty home, the
commands run as a new user runs them. Every Python must give the same score to the last bit, and
the same corrected one to 12 digits: the NumPy pinned for Python 3.11 is an older one.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:64]
DATA = [
    "guidance/published.csv",
    "warehouse/migrations/*.sql",
    "warehouse/state/migrations/*.sql",
    "py.typed",
]
Scores = tuple[float, float]
UV = Path(sys.executable).with_name("uv")


def run(*command: str | Path, **options: object) -> str:
    """What a command prints; if it fails, what it printed is shown."""
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{command} failed ({done.returncode})\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def supported_pythons() -> list[str]:
    """`3.11` and so on, as the classifiers say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    last = [each.rpartition(" ")[2] for each in project["classifiers"] if ":: Python ::" in each]
    return [each for each in last if "." in each]


def find_python(version: str) -> str | None:
    """The path of an interpreter that runs, which a version manager's shim may not."""
    command = [f"python{version}", "-c", "import sys; print(sys.executable)"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def build(folder: Path) -> Path:
    """The wheel, with all its data and nothing else than the package."""
    run(UV, "build", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, ROOT)
    [wheel] = folder.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "visdiv_assets"
    wanted = {
        str(path.relative_to(ROOT)) for data in ["**/*.py", *DATA] for path in package.glob(data)
    }
    assert all(list(package.glob(data)) for data in DATA)
    assert wanted <= names, f"the wheel lacks {sorted(wanted - names)}"
    others = {name for name in names - wanted if ".dist-info/" not in name}
    assert not others, f"the wheel should not have {sorted(others)}"
    return wheel


def random_weights(path: Path) -> None:
    """Seeded weights in Meta's format, for any Python: the int8 model needs 3.12."""
    import torch

    sys.path.insert(0, str(ROOT))
    from visdiv_assets_tests.embedding.reference import preprocess, random_reference

    torch.save(random_reference(preprocess(PHOTOS[:8], side=160)).state_dict(), path)


def use(python: str, wheel: Path, weights: Path, folder: Path) -> dict[str, Scores]:
    """Install and use the wheel; the scores by model."""
    run(UV, "venv", "--quiet", "--python", python, folder / "env")
    installed = ("--python", folder / "env/bin/python", "--constraint", ROOT / "constraints.txt")
    run(UV, "pip", "install", "--quiet", *installed, f"visdiv_assets[onnx] @ {wheel.as_uri()}")

    home, bin_folder = folder / "home", folder / "env/bin"
    photos = home / "photos"
    photos.mkdir(parents=True)
    for photo in PHOTOS:
        shutil.copy(photo, photos)
    clean = {
        "HOME": str(home),
        "PATH": f"{bin_folder}:{os.defpath}",
        "LANG": "C.UTF-8",
        "VISDIV_WEIGHTS_URL": "http://127.0.0.1:9",  # nothing may be downloaded
    }

    def here(command: str, *arguments: str) -> str:
        return run(bin_folder / command, *arguments, cwd=home, env=clean)

    origin = here("python", "-c", "import visdiv_assets; print(visdiv_assets.__file__)")
    assert origin.startswith(str(folder)), origin
    assert here("visdiv", "--version").split()[0] == "visdiv"
    here("visdiv", "init")
    settings = home / "visdiv.yaml"
    commented, scores = settings.read_text(), dict[str, Scores]()
    models = {"random": str(weights)}
    if here("python", "-c", "import sys; print(sys.version_info >= (3, 12))") == "True\n":
        models["int8"] = "auto"
    for name, spec in models.items():
        settings.write_text(f"embedder: {{weights: {spec}, device: cpu}}\n{commented}")
        result = json.loads(here("visdiv", "score", "photos", "--json"))
        assert result["n_images"] == len(PHOTOS), result
        scores[name] = (result["diversity_score"], result["corrected_score"])
        assert all(scores[name]), result
        here("visdiv", "doctor")
    here("dagster", "definitions", "validate", "-m", "visdiv_assets.definitions")
    return scores


def main() -> None:
    """Build, then install and use under each Python."""
    versions = supported_pythons()
    pythons = {version: find_python(version) for version in versions}
    if not any(pythons.values()):
        sys.exit(f"none of Python {', '.join(versions)} is here")
    seen: dict[str, Scores] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel, weights = build(folder / "dist"), folder / "random.torchvision.pt"
        random_weights(weights)
        for version, python in pythons.items():
            if python is None:
                print(f"Python {version} is not here: not tested")
                continue
            started = time.monotonic()
            scores = use(python, wheel, weights, folder / version)
            print(f"Python {version}: {scores}, {time.monotonic() - started:.0f} s", flush=True)
            for model, (plain, corrected) in scores.items():
                first_plain, first_corrected = seen.setdefault(model, (plain, corrected))
                assert plain == first_plain, f"{plain} is not {first_plain}"
                assert math.isclose(corrected, first_corrected, rel_tol=1e-12), corrected


if __name__ == "__main__":
    main()
