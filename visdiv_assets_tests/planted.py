"""A dataset with a bias that is known: half of its images share a background."""

from pathlib import Path

from PIL import Image

BACKGROUND = "city5.jpg"
SIDE = 320


def plant_shared_background(photos: Path, target: Path, most: int = 212) -> Path:
    """Every second photograph pasted small onto one background, the others as they are.

    Args:
        photos: the folder of the demo photographs.
        target: gets `on_background/<name>` and `as_they_are/<name>`.
        most: how many photographs to use.
    """
    with Image.open(photos / BACKGROUND) as photograph:
        background = photograph.convert("RGB").resize((SIDE, SIDE))
    others = [path for path in sorted(photos.glob("*.jpg")) if path.name != BACKGROUND]
    for at, path in enumerate(others[:most]):
        folder = target / ("as_they_are" if at % 2 else "on_background")
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photograph:
            picture = photograph.convert("RGB").resize((SIDE, SIDE))
        if not at % 2:
            small, picture = picture.resize((SIDE // 3, SIDE // 3)), background.copy()
            # Not always at one place: what is shared is the background, not the layout.
            picture.paste(small, (20 + at * 37 % 170, 20 + at * 61 % 170))
        picture.save(folder / path.name, quality=92)
    return target
