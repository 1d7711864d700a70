"""Devices and thresholds as they are meant."""

from visdiv_assets.settings.model import EmbedderSettings
from visdiv_assets.workflows.catalogue import as_text
from visdiv_assets.workflows.project import device_for


def test_a_device_is_as_the_settings_say_and_no_gpu_is_asked_for_a_few_rows():
    assert device_for(EmbedderSettings(device="cuda:1"), 10) == "cuda:1"
    assert device_for(EmbedderSettings(device=["cuda:0", "cuda:1"]), 10) == "cuda:0"
    assert device_for(EmbedderSettings(), 10) == "cpu"


def test_thresholds_are_written_with_two_digits_or_as_many_as_they_have():
    assert [as_text(each) for each in (0, 0.9, 0.75, 0.755, 1.0)] == [
        "0.00", "0.90", "0.75", "0.755", "1.00",
    ]  # fmt: skip
