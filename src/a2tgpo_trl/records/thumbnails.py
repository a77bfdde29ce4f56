"""Small copies of pictures, in turn records."""

import hashlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from ..rollout.pictures import Picture

MOST_BYTES = 2**15
"""Of a thumbnail."""


class Thumbnails:
    """
    The pictures of some rows, each once.

    Args:
        longest_side (`int`): In pixels; 0 keeps none.
    """

    def __init__(self, longest_side: int):
        self.longest_side = longest_side
        self._names: dict[int, str] = {}  # by the id of a picture, which its rollout keeps alive
        self._kept: set[str] = set()

    def columns(self, **pictures: Sequence[Picture]) -> dict[str, Any]:
        """
        Columns of a row.

        Args:
            pictures (`Sequence[PIL.Image.Image]`): By the column that names them.

        Returns:
            `dict`: names by column; and as `thumbnails`, by name, those that no row before has. Columns without any are left out.
        """
        if not self.longest_side:
            return {}
        new: dict[str, bytes] = {}
        named = {column: [self._name(picture, new) for picture in ones] for column, ones in pictures.items()}
        return {column: names for column, names in {**named, "thumbnails": new}.items() if names}

    def _name(self, picture: Picture, new: dict[str, bytes]) -> str:
        """The name of a picture, which is added to those that are new."""
        if id(picture) not in self._names:
            file = thumbnail(picture, self.longest_side)
            name = self._names[id(picture)] = hashlib.blake2b(file, digest_size=8).hexdigest()
            if name not in self._kept:
                self._kept.add(name)
                new[name] = file
        return self._names[id(picture)]


def thumbnail(picture: Picture, longest_side: int) -> bytes:
    """
    A small copy of a picture, on white where it is transparent.

    Args:
        picture (`PIL.Image.Image`): Of any mode.
        longest_side (`int`): In pixels; smaller if the file had more than `MOST_BYTES` otherwise, and if the picture is.

    Returns:
        `bytes`: a JPEG file.
    """
    from PIL import Image  # Pillow is needed only where there are pictures

    small = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    small.info.clear()  # a comment, which the file would get
    small.thumbnail((longest_side, longest_side), reducing_gap=1)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    file = BytesIO()
    small.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue() if file.tell() <= MOST_BYTES else thumbnail(small, max(small.size) // 2)
