"""Pictures in rows of a question set, and where they stand in a prompt."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

COLUMNS = ("images", "image")
"""Where pictures stand in a row: several, or one."""
PLACE = "<image>"
"""In a text, where a picture stands."""
IMAGE = {"type": "image", "text": None}
"""A block where a picture stands, with the fields of a block of text."""


def has_column(row: Any) -> bool:
    """Whether a row has a column for pictures, empty or not."""
    return isinstance(row, dict) and any(column in row for column in COLUMNS)


def read_pictures(row: dict, folder: Path, where: str) -> list[Any]:
    """
    Find the pictures of a row. Nothing is fetched.

    Args:
        row (`dict`):
            With pictures in `images` or `image`, or without: PIL images, paths, files as bytes, or `{"bytes": …, "path": …}`.
        folder (`Path`):
            To which paths are relative.
        where (`str`):
            What to call the row in an error.

    Returns:
        `list`: PIL images as they are, and others as `datasets.Image` stores them.

    Raises:
        `ValueError`: a picture is an address, is missing, or cannot be read.
    """
    column = next((column for column in COLUMNS if row.get(column)), None)
    given = [] if column is None else row[column]
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    return [_picture(one, folder, f"{where}: {column!r}") for one in given]


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


def _picture(given: Any, folder: Path, what: str) -> Any:
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


def _file(given: str, folder: Path, what: str) -> str:
    shown = given if len(given) <= 80 else given[:79] + "…"
    if "://" in given:
        raise ValueError(f"{what} is the address {shown!r}, and nothing is fetched: load it, and name the file.")
    file = os.path.abspath(folder / given)
    if not os.path.isfile(file):
        raise ValueError(
            f"{what} is {shown!r}, and there is no file {str(folder / shown)!r}: paths are relative to the folder of the data file."
        )
    _check_readable(file, f"{what} is {shown!r}")
    return file


def _check_readable(file: Any, what: str) -> None:
    from PIL import Image  # Pillow is needed only where there are pictures

    try:
        with Image.open(file) as picture:
            picture.draft("RGB", (1, 1))  # of a JPEG file, all that has to be computed
            picture.load()
    except Exception as error:  # readers of formats raise whatever they like
        raise ValueError(f"{what}, which cannot be read as a picture ({type(error).__name__}: {error}).") from error
