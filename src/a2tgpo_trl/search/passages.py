"""What a passage is: how corpora write it down, and how a retriever's protocol does."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path


def as_passage(record: dict | str, where: str) -> dict:
    """Give a record a title and a text.

    Args:
        record (`dict | str`):
            A text; or a dict with a `"text"` and, if it has one, a `"title"`; or a dict with `"contents"` in the layout
            of Search-R1 and FlashRAG, the title in its first line, in quotes or not, and the text below it. Contents of
            one line are a text without a title.
        where (`str`):
            What an error calls the record, such as `"passages[3]"`.

    Returns:
        `dict`: the record with `"title"`, which is empty where there is none, and `"text"`.

    Raises:
        `ValueError`: the record is of another kind, lacks its text, or holds something else in its place.
    """
    if isinstance(record, str):
        return {"title": "", "text": record}
    if not isinstance(record, dict):
        raise ValueError(f'{where} is of type {type(record).__name__}; give an object with a "text" or "contents".')
    if "text" in record:
        passage = {**record, "title": record.get("title") or ""}
    elif isinstance(record.get("contents"), str):
        title, text = _split(record["contents"])
        passage = {**record, "title": title, "text": text}
    else:
        raise ValueError(f'{where} has neither a "text" nor "contents" of text; it has {sorted(record)}.')
    for key in ("title", "text"):
        if not isinstance(passage[key], str):
            raise ValueError(f'{where} has a "{key}" of type {type(passage[key]).__name__}; it must be text.')
    return passage


def as_passages(records: Sequence[dict | str]) -> list[dict]:
    """The passages of a list, see [`as_passage`].

    Raises:
        `ValueError`: a record is no passage, or there are none.
    """
    if not len(records):
        raise ValueError("passages is empty; give at least one passage to search.")
    return [as_passage(record, f"passages[{index}]") for index, record in enumerate(records)]


def contents_of(passage: dict) -> str:
    """The passage as one text, as Search-R1 writes it: what it was read from, or `"title"` in quotes above the text."""
    if isinstance(passage.get("contents"), str):
        return passage["contents"]
    if not passage["title"] and "\n" not in passage["text"]:
        return passage["text"]
    return f'"{passage["title"]}"\n{passage["text"]}'


def read_corpus(file: Path) -> Iterator[tuple[bytes, dict]]:
    """Read a corpus, JSON of one passage a line. Blank lines are skipped.

    Args:
        file (`Path`):
            Where it is; see [`as_passage`] for what a line may hold.

    Returns:
        `Iterator[tuple[bytes, dict]]`: each line as it stands there, without its end, and its passage.

    Raises:
        `ValueError`: a line is no JSON or no passage; the error names file and line.
    """
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.strip()
            if line:
                yield line, _parsed(line, f"{file}, line {number}")


def _parsed(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON in UTF-8: {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f'{where} holds no JSON object; write one passage a line, {{"title": …, "text": …}}.')
    return as_passage(record, where)


def _split(contents: str) -> tuple[str, str]:
    title, line_break, text = contents.partition("\n")
    if not line_break:
        return "", contents
    title = title.strip()
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, text
