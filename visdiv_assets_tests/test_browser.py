"""The web UI in a real browser: the graph shows, a click materialises, the score is visible.

Starts `dagster dev` as a user would, in a folder of its own, and drives headless Chromium.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets_tests.dagster_dev import copy_project, dagster_dev

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 300_000  # milliseconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)"
    ),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two small datasets, which only the person at the browser will have scored."""
    copy_project(tmp_path)
    for name, count in (("six", 6), ("twelve", 12)):
        (tmp_path / name).mkdir()
        for photograph in sorted((ROOT / "examples/demo/photos").glob("*.jpg"))[:count]:
            shutil.copy(photograph, tmp_path / name)
    (tmp_path / "visdiv.yaml").write_text(
        "store: .visdiv\n"
        "datasets:\n"
        "  six: {source: six, watch: false, schedule: false}\n"
        "  twelve: {source: twelve, watch: false, schedule: false}\n"
    )
    return tmp_path


@pytest.fixture
def url(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DAGSTER_HOME", str(project))
    monkeypatch.chdir(project)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("datasets", ["six", "twelve"])
    with dagster_dev(project) as address:
        yield address


def _wait_for_success() -> None:
    for _ in range(1200):
        with dg.DagsterInstance.get() as instance:
            runs = instance.get_runs()
        if len(runs) == 2 and all(run.is_finished for run in runs):
            assert all(run.is_success for run in runs)
            return
        time.sleep(0.5)
    pytest.fail("the two runs did not finish")


@pytest.fixture
def page() -> Iterator[Page]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def test_datasets_are_materialised_and_a_score_is_seen_in_the_browser(project, url, page):
    # The graph of all four assets.
    page.goto(f"{url}/assets/diversity_metrics?view=lineage&lineageScope=upstream&lineageDepth=5")
    for asset in ("image_manifest", "sscd_embeddings", "embedding_moments", "diversity_metrics"):
        expect(page.get_by_text(asset, exact=True).last).to_be_visible(timeout=PATIENCE)

    # Materialise all partitions of all of them: a backfill, which the daemon carries out.
    page.get_by_role("button", name="Materialize all").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("All", exact=True).click()
    expect(dialog.get_by_text("2 partitions", exact=True)).to_be_visible(timeout=PATIENCE)
    dialog.get_by_role("button", name="Launch").click()

    # The runs succeed, and the page of the asset shows the score that DuckDB holds.
    _wait_for_success()
    latest = Warehouse(project / ".visdiv/visdiv.duckdb").latest_evaluations()
    assert [(each.dataset, each.n_images) for each in latest] == [("six", 6), ("twelve", 12)]
    evaluation = latest[1]
    page.goto(f"{url}/assets/diversity_metrics?view=partitions&partition=twelve")
    shown = str(round(evaluation.diversity_score, 6))
    expect(page.get_by_text(shown, exact=True).first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text(evaluation.rating).first).to_be_visible()

    # The spectrum is a picture that the browser can draw.
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator("img[src^='data:image/']").first
    expect(picture).to_be_visible(timeout=PATIENCE)
    assert picture.evaluate("image => image.naturalWidth") > 300
