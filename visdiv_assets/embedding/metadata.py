"""Encoded images without texts, profiles and other data that are not pixels.

Here: cutting such data out of PNG, JPEG and TIFF, for files whose pixels are good although
something else in them is not. Not here: decoding (`decoding.py`). Nothing is decompressed.
"""

import zlib

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
START_OF_SCAN = 0xDA
COMMENT = 0xFE

# Of application segments, APP0 and APP14 decide on colours, if they are as long as this.
SHAPING_SEGMENTS = {0xE0: 14, 0xEE: 12}

# Tags of TIFF and its supplements that decide on pixels.
# fmt: off
SHAPING_TAGS = frozenset({
    254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 281, 284, 292, 293, 317, 320,
    322, 323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518,
    519, 520, 521, 529, 530, 531, 532,
})
# fmt: on


def without_metadata(data: bytes) -> bytes:
    """The same image without what is not needed for its pixels; other formats are left alone.

    EXIF data stay, for the orientation. Of an animation, the picture for all viewers stays.

    Example:
        >>> without_metadata(b"no image")
        b'no image'
    """
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(JPEG):
        return _jpeg(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _tiff(data)
    return data


def _png(data: bytes) -> bytes:
    kept, at = [PNG], len(PNG)
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if not kind.isalpha():
            break
        critical = not kind[0] & 0x20
        whole = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if critical or kind == b"tRNS" or (kind == b"eXIf" and whole):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _jpeg(data: bytes) -> bytes:
    kept, at = [JPEG], len(JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # fills up
            at += 1
            continue
        if length < 2:
            break
        is_exif = marker == 0xE1 and data[at + 4 : at + 8] == b"Exif"
        other = marker == COMMENT or 0xE0 <= marker <= 0xEF
        if not other or is_exif or length - 2 >= SHAPING_SEGMENTS.get(marker, 2**16):
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, data[at:]])


def _tiff(data: bytes) -> bytes:
    """With a shorter first directory; what it pointed to stays where it is."""
    order = "little" if data.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    first = number(4, 4)
    start = first + 2
    end = start + 12 * number(first, 2)
    entries = [data[at : at + 12] for at in range(start, end, 12)]
    kept = [
        entry
        for at, entry in zip(range(start, end, 12), entries, strict=True)
        if number(at, 2) in SHAPING_TAGS
    ]
    if len(kept) == len(entries) or end + 4 > len(data):
        return data
    count = len(kept).to_bytes(2, order)  # type: ignore[arg-type]
    directory = count + b"".join(kept) + b"\0\0\0\0"  # the first page alone
    return data[:first] + directory + data[first + len(directory) :]
