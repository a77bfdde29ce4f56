"""Pictures in rows of a question set, and where they stand in a prompt."""

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from .layouts import has, read

COLUMNS = ("images", "image")
"""Where pictures stand in a row, if nothing else is said: several, or one."""
NO_PICTURES = "Where the column holds no pictures, give columns={'images': None}."
PLACE = "<image>"
"""In a text, where a picture stands."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Which files are read: others may come from anywhere, and some of Pillow's readers run programs."""
IMAGE = {"type": "image", "text": None}
"""A block where a picture stands, with the fields of a block of text."""


def picture_columns(option: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Read what the option `columns` says of pictures.

    Args:
        option (`Mapping`):
            With `images` or without: a column, or `None` for none.

    Returns:
        `tuple`: the columns that hold pictures.

    Raises:
        `ValueError`: it is something else.
    """
    given = option.get("images", COLUMNS)
    if "images" in option and not isinstance(given, str | None):
        raise ValueError(
            f"columns has 'images': {given!r}; it must be the name of a column, or None where there are no pictures."
        )
    return (given,) if isinstance(given, str) else given or ()


def has_column(row: Any, columns: Sequence[str]) -> bool:
    """Whether a row has one of the columns for pictures, empty or not."""
    return isinstance(row, dict) and any(has(row, column) for column in columns)


def read_pictures(row: dict, columns: Sequence[str], folder: Path | None, where: str) -> list[Any]:
    """
    Find the pictures of a row. Nothing is fetched.

    Args:
        row (`dict`):
            With pictures or without: PIL images, paths, files as bytes, or `{"bytes": …, "path": …}`.
        columns (`Sequence[str]`):
            Where they may stand.
        folder (`Path`, *optional*):
            To which paths are relative; of sets that are no files they are absolute.
        where (`str`):
            What to call the row in an error.

    Returns:
        `list`: PIL images as they are, and others as `datasets.Image` stores them.

    Raises:
        `ValueError`: a picture is an address, is missing, or cannot be read.
    """
    column = next((column for column in columns if read(row, column)), None)
    given = [] if column is None else read(row, column)
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    try:
        return [_picture(one, folder, f"{where}: {column!r}") for one in given]
    except ValueError as error:
        raise ValueError(f"{error} {NO_PICTURES}") from error


def place_pictures(messages: list[dict], number: int, where: str) -> list[dict]:
    """
    Say where pictures stand in a prompt: at blocks of images or at `<image>`, or else before the first message of the user.

    Args:
        messages (`list[dict]`):
            The prompt.
        number (`int`):
            How many pictures the row has.
        where (`str`):
            What to call the row in an error.

    Returns:
        `list[dict]`: messages whose contents are blocks.

    Raises:
        `ValueError`: the prompt has places for more pictures, or for fewer.
    """
    placed = [{**message, "content": as_blocks(message["content"], number > 0)} for message in messages]
    places = sum(block["type"] == "image" for message in placed for block in message["content"])
    if number and not places:
        first = next((message for message in placed if message["role"] == "user"), placed[0])
        first["content"] = [IMAGE] * number + first["content"]
    elif places != number:
        raise ValueError(
            f"{where} has pictures: {number}, and places for them in its prompt: {places}. Give as many blocks of type 'image', or as many "
            f"{PLACE}, as there are pictures, or none, which puts them before the first message of the user."
        )
    return placed


def as_blocks(content: str | list[dict], with_places: bool = False) -> list[dict]:
    """The content of a message as blocks of text and, if need be, of images at `<image>`; blocks as they are."""
    if isinstance(content, list):
        return [{**IMAGE, **block} for block in content]
    first, *others = content.split(PLACE) if with_places else [content]
    blocks = [{"type": "text", "text": first}]
    for text in others:
        blocks += [IMAGE, {"type": "text", "text": text}]
    return [block for block in blocks if block["text"] != ""] or blocks


def _picture(given: Any, folder: Path | None, what: str) -> Any:
    if hasattr(given, "getbands"):  # a PIL image
        return given
    if isinstance(given, dict):
        given = given.get("bytes") or given.get("path")
    if isinstance(given, bytes):
        _check_readable(BytesIO(given), f"{what} is a file of {len(given)} bytes")
        return {"bytes": given, "path": None}
    if not isinstance(given, str):
        raise ValueError(f"{what} is of type {type(given).__name__}, and pictures are paths, bytes, or PIL images.")
    return {"bytes": None, "path": _file(given, folder, what)}


def _file(given: str, folder: Path | None, what: str) -> str:
    shown = given if len(given) <= 80 else given[:79] + "…"
    if "://" in given:
        raise ValueError(f"{what} is the address {shown!r}, and nothing is fetched: load it, and name the file.")
    if folder is None and not os.path.isabs(given):
        raise ValueError(
            f"{what} is {shown!r}, and the set is no file to which this could be relative: give whole paths."
        )
    file = os.path.abspath(os.path.join(folder or "", given))
    if not os.path.isfile(file):
        raise ValueError(
            f"{what} is {shown!r}, and there is no file {os.path.join(folder or '', shown)!r}: paths are relative to the folder of the "
            "data file."
        )
    _check_readable(file, f"{what} is {shown!r}")
    return file


def _check_readable(file: Any, what: str) -> None:
    from PIL import Image  # Pillow is needed only where there are pictures

    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.format == "PNG":  # has checksums, which need no pixels
                picture.verify()
            else:
                picture.draft("RGB", (1, 1))  # of a JPEG file, all that has to be computed
                picture.load()
    except Exception as error:  # readers of formats raise whatever they like
        raise ValueError(f"{what}, which cannot be read as a picture ({type(error).__name__}: {error}).") from error
