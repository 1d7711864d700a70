"""What nvJPEG is given, and what becomes of a batch; decoded by libjpeg here, on the CPU."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from visdiv_assets.embedding import gpu_decode
from visdiv_assets.embedding.decoding import decode_square
from visdiv_assets.embedding.gpu_decode import GpuDecoder, are_flat, plain_jpeg_size
from visdiv_assets.embedding.preprocess import DecodeError, Decoding, decode_image
from visdiv_assets.errors import VisdivError

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def encoded(mode="RGB", kind="JPEG", size=(48, 30), **options):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def with_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(exif=exif)


@pytest.fixture
def decoder():
    return GpuDecoder(CPU, Decoding())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "L"},
        {"progressive": True},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"comment": b"\xff\xc2 is no frame in here \xff\xd9"},
    ],
    ids=str,
)
def test_ordinary_jpegs_are_for_the_gpu(options):
    assert plain_jpeg_size(encoded(**options)) == (48, 30)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"hello",
        encoded(kind="PNG"),
        encoded(kind="WEBP"),
        encoded("CMYK"),
        encoded(keep_rgb=True),
        encoded()[:-2],
        encoded() + b"\0",
        encoded().replace(b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
        encoded().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),  # 12 bits
        encoded(size=(1, 2)).replace(b"\x08\x00\x02\x00\x01", b"\x08\x00\x00\x00\x01"),
    ],
    ids=range(13),
)
def test_everything_else_is_not(data):
    assert plain_jpeg_size(data) is None


def test_what_is_to_be_turned_upright_is_not_for_the_gpu():
    assert plain_jpeg_size(with_exif_orientation())
    assert plain_jpeg_size(with_exif_orientation(), Decoding(exif_orientation=True)) is None


def test_limits_hold_on_the_gpu_too(monkeypatch):
    assert plain_jpeg_size(encoded(), Decoding(max_pixels=48 * 30))
    assert plain_jpeg_size(encoded(), Decoding(max_pixels=48 * 30 - 1)) is None
    monkeypatch.setattr(gpu_decode, "MAX_PIXELS", 1000)
    assert plain_jpeg_size(encoded()) is None


def test_no_damage_to_a_header_raises():
    dice = random.Random(0)
    good = encoded()
    for _ in range(2000):
        bad = bytearray(good[: dice.randrange(2, 300)] + good[-2:])
        bad[dice.randrange(len(bad))] = dice.randrange(256)
        plain_jpeg_size(bytes(bad))


def test_pixels_are_within_one_step_of_pillows(photos, pixels, decoder):
    squares, left = decoder.decode([path.read_bytes() for path in photos])
    assert left == []
    assert squares.shape == (8, 320, 320, 3)
    assert squares.dtype == torch.uint8
    difference = np.abs(squares.numpy().astype(int) - pixels)
    assert difference.max() <= 1
    assert difference.mean() < 0.16


def test_grey_is_grey_in_all_three_colours(decoder):
    squares, _ = decoder.decode([encoded("L")])
    assert torch.equal(squares[..., 0], squares[..., 1])
    assert np.abs(squares[0].numpy().astype(int) - decode_image(encoded("L"))).max() <= 1


def test_squares_of_one_colour_are_the_same_on_the_gpu_as_elsewhere():
    greys = [(7, 7), (7, 9), (7, 10), (0, 255)]
    images = [Image.fromarray(np.repeat([pair], 2, 0).astype(np.uint8)) for pair in greys]
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    squares = torch.from_numpy(np.stack([decode_image(file) for file in files]))
    flat = [decode_square(file, Decoding()).flat for file in files]
    assert are_flat(squares).tolist() == flat == [True, True, False, False]


def test_images_of_many_sizes_and_kinds_keep_their_places(decoder):
    files = [
        encoded(size=(48, 30)),
        encoded(kind="PNG", size=(50, 20)),
        encoded(size=(30, 48)),
        b"no image",
        encoded(size=(48, 30), quality=10),
    ]
    squares, left = decoder.decode(files)
    assert left == [1, 3]
    assert not squares[left].any()
    for at in (0, 2, 4):
        assert np.abs(squares[at].numpy().astype(int) - decode_image(files[at])).max() <= 1


def test_what_is_left_is_decoded_otherwise_and_errors_are_told(decoder):
    files = [encoded(), encoded(kind="PNG"), b"no image", encoded("CMYK")]
    squares, flat, failed = decoder.decode_all(files, decode_image)
    assert {at: type(error) for at, error in failed.items()} == {2: DecodeError}
    assert np.array_equal(squares[1].numpy(), decode_image(files[1]))
    assert np.array_equal(squares[3].numpy(), decode_image(files[3]))
    assert not squares[2].any()
    assert flat == [False, False, True, False]  # a failure is black


@pytest.mark.parametrize("bad", [{0}, {6}, {2, 3}, set(range(7))])
def test_images_that_the_decoder_chokes_on_cost_no_other_its_place(bad, decoder, monkeypatch):
    files = [encoded(quality=50 + at) for at in range(7)]
    sizes = {len(files[at]) for at in bad}
    calls = []

    def choking(buffers, **options):  # as nvJPEG does: one bad image, no result for any
        calls.append(len(buffers))
        if any(len(buffer) in sizes for buffer in buffers):
            raise RuntimeError("Failed to decode batch: 5")
        return decode_jpeg(buffers, **options)

    monkeypatch.setattr(gpu_decode, "decode_jpeg", choking)
    squares, left = decoder.decode(files)
    assert left == sorted(bad)
    assert all(squares[at].any() for at in set(range(7)) - bad)
    assert len(calls) <= 1 + 6 * len(bad)


def test_nothing_is_left_to_do_on_the_device_when_another_thread_decodes(decoder, monkeypatch):
    # nvJPEG writes at once to memory that work which is still queued may use.
    locked, waits = [], []

    def noted(squares):
        locked.append(decoder._lock.locked())
        return are_flat(squares)

    monkeypatch.setattr("visdiv_assets.embedding.gpu_decode.are_flat", noted)
    monkeypatch.setattr(decoder, "_finish", lambda: waits.append(decoder._lock.locked()))
    decoder.decode_all([encoded()], decode_image)
    assert locked == [True]
    assert waits == [True, True, True]  # before and after decoding, and at the end


def test_memory_is_bounded_by_decoding_in_chunks(decoder, monkeypatch):
    files = [encoded(size=(40, 40)), encoded(size=(20, 20)), encoded(size=(40, 40))]
    expected, _ = decoder.decode(files)
    calls = []

    def counting(buffers, **options):
        calls.append(len(buffers))
        return decode_jpeg(buffers, **options)

    monkeypatch.setattr(gpu_decode, "decode_jpeg", counting)
    monkeypatch.setattr(gpu_decode, "CHUNK_PIXELS", 2000)
    squares, left = decoder.decode(files)
    assert (calls, left) == ([2, 1], [])
    assert torch.equal(squares, expected)


def test_a_size_that_cannot_be_resized_there_is_left_to_others(decoder, monkeypatch):
    resize = gpu_decode.F.interpolate

    def weak(images, *args, **options):
        if images.shape[-1] > 100:
            raise RuntimeError("Too much shared memory required")
        return resize(images, *args, **options)

    monkeypatch.setattr(gpu_decode.F, "interpolate", weak)
    _, left = decoder.decode([encoded(), encoded(size=(101, 10)), encoded()])
    assert left == [1]


def test_a_device_that_broke_down_is_an_error_and_no_reason_to_go_on(decoder, monkeypatch):
    def broken(buffers, **options):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr(gpu_decode, "decode_jpeg", broken)
    with pytest.raises(VisdivError, match=r"^cpu failed: CUDA error: unspecified launch failure$"):
        decoder.decode([encoded(), encoded()])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_without_a_decoder_is_refused():
    with pytest.raises(VisdivError, match="cuda:0 cannot decode JPEG: "):
        GpuDecoder(torch.device("cuda:0"), Decoding())


def test_no_images_are_no_problem(decoder):
    squares, left = decoder.decode([])
    assert squares.shape == (0, 320, 320, 3)
    assert left == []
