"""Augmentations: each makes another picture of the same shape, the same one every time."""

import numpy as np
import pytest

from visdiv_assets.embedding.augmentations import CATALOGUE, NAMES, augment, chosen, pairs
from visdiv_assets.errors import VisdivError

BY_NAME = {each.name: each for each in CATALOGUE}
KEYS = [bytes([at]) * 16 for at in range(4)]
RNG = np.random.default_rng(0)
# Smooth, with an object: noise would hide what is done to it.
PICTURES = [
    np.kron(RNG.integers(20, 236, (8, 8, 3)), np.ones((40, 40, 1))).astype(np.uint8) for _ in KEYS
]


def made(name, pictures=PICTURES, keys=KEYS):
    return list(augment(BY_NAME[name], pictures, keys))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_the_shape_of_its_image_and_is_another_picture(name):
    copies = made(name)
    assert {(copy.shape, copy.dtype) for copy in copies} == {((320, 320, 3), np.dtype(np.uint8))}
    changed = [not np.array_equal(*each) for each in zip(copies, PICTURES, strict=True)]
    assert sum(changed) >= 3  # a policy may draw "identity" now and then


@pytest.mark.parametrize("name", NAMES)
def test_copies_depend_on_content_and_not_on_order_or_on_what_was_drawn_before(name):
    import torch

    first = made(name)
    torch.rand(3)
    # Pairs stay together, as those that mix two need.
    again = made(name, PICTURES[2:] + PICTURES[:2], KEYS[2:] + KEYS[:2])
    assert all(map(np.array_equal, first, again[2:] + again[:2]))


def test_augmenting_leaves_the_random_numbers_of_others_alone():
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    made("crop")
    assert torch.rand(1) == expected


def test_images_of_other_content_are_cut_elsewhere():
    assert not np.array_equal(*made("crop", [PICTURES[0]] * 2, KEYS[:2]))


def test_flips_and_turns_do_what_they_say():
    image = PICTURES[0]
    assert np.array_equal(made("flip")[0], image[:, ::-1])
    assert np.array_equal(made("flip-vertical")[0], image[::-1])
    assert np.array_equal(made("rotate-90")[0], np.rot90(image))


def test_mixed_copies_are_made_of_both_images_of_a_pair():
    black, white = np.zeros((320, 320, 3), np.uint8), np.full((320, 320, 3), 255, np.uint8)
    for name in ("mixup", "cutmix"):
        one, other = made(name, [black, white], KEYS[:2])
        assert 0 < one.mean() < 255
        assert 0 < other.mean() < 255
    [blended, _] = made("mixup", [black, white], KEYS[:2])
    assert len(np.unique(blended)) == 1


@pytest.mark.parametrize(
    ("n", "expected"), [(0, []), (1, [0]), (2, [0, 0]), (3, [0, 0, 0]), (4, [0, 0, 1, 1])]
)
def test_pairs_leave_no_image_alone(n, expected):
    assert pairs(n).tolist() == expected


def test_names_are_chosen_in_the_order_of_the_catalogue():
    assert [each.name for each in chosen([" crop", "flip"])] == [
        "flip",
        "flip-vertical",
        "crop-mild",
        "crop",
    ]
    assert [each.name for each in chosen(["crop-mild"])] == ["crop-mild"]


@pytest.mark.parametrize("names", [["crops"], [""], [], ["flip", "nothing"]])
def test_an_unknown_augmentation_is_an_error_that_names_all(names):
    with pytest.raises(VisdivError, match="cutmix"):
        chosen(names)


def test_importing_the_catalogue_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, visdiv_assets.embedding.augmentations; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
