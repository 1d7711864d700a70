"""Images of a dataset by name, decoded: for contact sheets and for what needs pixels again.

Here: reading and decoding a few images of a source. Not here: embedding whole datasets
(`embedding/pipeline.py`), drawing (`report/sheets.py`).
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from visdiv_assets.embedding.cpus import usable_cpus
from visdiv_assets.embedding.decoders import Decoders, Picture
from visdiv_assets.embedding.preprocess import DecodeError, Decoding
from visdiv_assets.sources.source import Source


def pictures_of(
    source: Source, image_ids: Iterable[str], decoding: Decoding
) -> Iterator[tuple[str, int, Picture]]:
    """Read and decode images, in processes of their own.

    Args:
        source: where they are.
        image_ids: which ones.
        decoding: how to decode.

    Yields:
        image id, size in bytes, picture; in the order of the ids, without those that can no longer
        be read or decoded.
    """
    wanted = sorted(set(image_ids))
    workers = min(4, usable_cpus())
    with Decoders(decoding, workers) as decoders, ThreadPoolExecutor(workers) as threads:

        def decode(data: bytes | OSError) -> tuple[int, Picture] | None:
            try:
                return None if isinstance(data, OSError) else (len(data), decoders.picture(data))
            except DecodeError:
                return None

        reads = list(source.read_all(wanted)) if len(wanted) <= 64 else source.read_all(wanted)
        decoded = ((each.at, threads.submit(decode, each.data)) for each in reads)
        found = {at: future.result() for at, future in decoded}
    for at, image_id in enumerate(wanted):
        picture = found.get(at)
        if picture is not None:
            yield image_id, *picture
