"""Charts: what they are drawn from, and that they can be drawn of anything."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from visdiv_assets.guidance.augmentation import Effect
from visdiv_assets.report.charts import effects_png, spectrum_png
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity

RNG = np.random.default_rng(0)


def draw(rows: np.ndarray) -> Image.Image:
    return Image.open(io.BytesIO(spectrum_png(diversity(Moments.of(rows)))))


@pytest.mark.parametrize(
    "rows",
    [
        RNG.standard_normal((300, 64)),
        RNG.standard_normal((3, 64)),
        RNG.standard_normal((2, 512)),
        np.ones((5, 8)),
        np.array([[0.0], [1.0]]),
        1e-9 * RNG.standard_normal((300, 64)),
    ],
    ids=["many", "three", "two", "all equal", "one dimension", "tiny variance"],
)
def test_a_spectrum_is_a_png_of_fixed_size(rows):
    with warnings.catch_warnings(category=UserWarning, action="error"):
        warnings.simplefilter("error", RuntimeWarning)
        picture = draw(rows)
    assert picture.format == "PNG"
    assert picture.size == (720, 360)


def test_effective_rank_and_participation_ratio_are_marked_in_their_colours():
    colours = {
        colour
        for _, colour in draw(RNG.standard_normal((300, 64))).convert("RGB").getcolors(1 << 20)
    }
    assert {(0xE8, 0x59, 0x0C), (0x2B, 0x8A, 0x3E)} <= colours


def test_without_any_variance_nothing_is_marked():
    colours = {colour for _, colour in draw(np.ones((5, 8))).convert("RGB").getcolors(1 << 20)}
    assert not {(0xE8, 0x59, 0x0C), (0x2B, 0x8A, 0x3E), (0x3B, 0x5B, 0xDB)} & colours


def test_the_same_spectrum_gives_the_same_picture():
    measured = diversity(Moments.of(RNG.standard_normal((300, 64))))
    assert spectrum_png(measured) == spectrum_png(measured)


def test_effects_are_drawn_in_the_colour_of_their_verdict_and_without_those_that_tell_nothing():
    def colours(**effects):
        picture = Image.open(io.BytesIO(effects_png(effects))).convert("RGB")
        return picture.size, {colour for _, colour in picture.getcolors(1 << 20)}

    green, red, grey = (0x2B, 0x8A, 0x3E), (0xC9, 0x2A, 0x2A), (0x86, 0x8E, 0x96)
    adds, takes = Effect(0.1, 0.05, 0.15, 1e-6, 0.5, 200), Effect(-0.1, -0.2, 0, 1e-6, 0.5, 200)
    size, found = colours(adds=adds, takes=takes, few=Effect(*[np.nan] * 4, 0.5, 20))
    assert {green, red} <= found
    assert colours(chance=Effect(0.1, -0.1, 0.3, 0.5, 0.5, 200), takes=takes)[0] == size
    assert grey in colours(unseen=Effect(0.1, 0.05, 0.15, 1e-6, 0.99, 200))[1]
    assert colours()[0][0] == 720


DRAW = """
import sys
import numpy as np
from visdiv_assets.report.charts import spectrum_png
from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import diversity

rows = np.arange(300.0).reshape(30, 10) ** 2 % 7
sys.stdout.buffer.write(spectrum_png(diversity(Moments.of(rows))))
"""


@pytest.mark.slow
def test_a_style_in_the_current_folder_changes_no_chart(tmp_path):
    pictures = []
    for style in ("", "axes.facecolor: red\nfont.size: 30\nsavefig.dpi: 10\n"):
        (tmp_path / "matplotlibrc").write_text(style)
        command = [sys.executable, "-c", DRAW]
        pictures.append(subprocess.run(command, cwd=tmp_path, stdout=-1, check=True).stdout)
    assert pictures[0] == pictures[1]
