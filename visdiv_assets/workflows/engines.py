"""Who embeds a dataset, as its settings say: this process, or workers that share it.

Not here: what an engine is (`engine.py`), Ray (`ray_engine.py`).
"""

from functools import partial

from visdiv_assets.settings.model import RayEngine, Settings, SourceSettings
from visdiv_assets.sources.opening import open_source
from visdiv_assets.workflows.engine import Engine, Job
from visdiv_assets.workflows.project import embedder_of, store_of


def engine_of(settings: Settings, dataset: str, source: SourceSettings) -> Engine | None:
    """The engine of a dataset; None is this process.

    Raises:
        VisdivError: a package that it needs is not installed.
    """
    engine = settings.engine_of(dataset)
    if not isinstance(engine, RayEngine):
        return None
    from visdiv_assets.workflows.ray_engine import Ray

    # Workers get no more than they need: no address of alerts, no credentials of other datasets.
    theirs = Settings.model_construct(
        store=settings.store,
        cache=settings.cache,
        embedder=settings.embedder_of(dataset),
        limits=settings.limits,
        datasets={},
    )
    job = Job(
        partial(embedder_of, theirs, dataset),
        partial(open_source, source),
        partial(store_of, theirs),
    )
    return Ray(engine, job)
