"""Settings of the whole process: as they were, whoever needed them, and however it ended."""

import threading

import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from visdiv_assets.similarity.exact_torch import exact_torch
from visdiv_assets.spectral.threads import one_blas_thread


def blas_threads():
    found = ThreadpoolController().select(user_api="blas").info()
    return {each["num_threads"] for each in found}


@pytest.fixture
def three_threads():
    """Another number than one, on any machine."""
    with threadpool_limits(3, user_api="blas"):
        yield


def flags():
    backends = torch.backends
    return (
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.cudnn.deterministic,
        backends.cudnn.benchmark,
        backends.cuda.matmul.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,
        backends.mkldnn.conv.fp32_precision,
        torch.get_num_threads(),
    )


def overlapping(needed):
    """Two threads need something at once, and the one that came first leaves first."""
    inside, left = threading.Event(), threading.Event()
    seen = []

    def first():
        with needed():
            inside.set()
            second_is_in.wait()
        left.set()

    second_is_in = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with needed():
        second_is_in.set()
        left.wait()
        seen.append((blas_threads(), flags_inside()))
    thread.join()
    return seen[0]


def flags_inside():
    return (
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    )


@pytest.mark.usefixtures("three_threads")
def test_blas_has_one_thread_for_as_long_as_anyone_needs_it_and_then_its_own_number():
    inside, _ = overlapping(one_blas_thread)
    assert inside == {1}
    assert blas_threads() == {3}


@pytest.mark.usefixtures("three_threads")
def test_nested_use_and_exceptions_leave_blas_as_it_was():
    with one_blas_thread():
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert blas_threads() == {1}
    assert blas_threads() == {3}


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request):
    """What a program may have set for itself."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(("device", "place"), [("cpu", 0), ("cuda", 1)])
def test_torch_is_exact_while_needed_and_then_as_it_was(device, place):
    before = flags()
    _, inside = overlapping(lambda: exact_torch(device))
    assert inside[place] == "ieee"
    assert flags() == before
    with pytest.raises(KeyError), exact_torch(device):
        raise KeyError
    assert flags() == before


def test_a_program_that_allows_bfloat16_gets_the_same_products_all_the_same():
    torch.manual_seed(0)
    left, right = torch.randn(64, 512), torch.randn(512, 64)
    expected = left @ right
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_torch("cpu"):
            assert torch.equal(left @ right, expected)
    finally:
        torch.set_float32_matmul_precision("highest")
