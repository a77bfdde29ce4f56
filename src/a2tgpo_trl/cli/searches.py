"""The searches that `search_url` and `search_index` name, as tools."""

import re
from collections.abc import Callable, Sequence

from ..data import load_atlas
from ..search import BM25Search, HTTPSearch, PassageSearch, open_search

ATLAS = "atlas"
"""Name of the questions and passages that ship with the package."""
NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)")


def check_names(urls: Sequence[str], indexes: Sequence[str]) -> None:
    """
    Refuse several searches that have not a name each.

    Args:
        urls, indexes (`Sequence[str]`): Places, or `name=place`.

    Raises:
        ValueError: If names are missing, or one is there twice.
    """
    names = [_name_and_place(source)[0] for source in (*urls, *indexes)]
    if len(names) > 1 and (None in names or len(set(names)) < len(names)):
        raise ValueError(
            f"search_url and search_index are {len(names)} searches, {[*urls, *indexes]}: give each a name of its own, as "
            "in wiki=wiki.bm25 news=news.bm25."
        )


def load_searches(urls: Sequence[str], indexes: Sequence[str], **options) -> list[Callable]:
    """
    A tool for each search: `search_NAME`, or `search` without a name.

    Args:
        urls (`Sequence[str]`): Addresses of retrievers, or `name=address`.
        indexes (`Sequence[str]`): Folders of built indexes, `"atlas"`, or `name=` one of these.
        options (`Any`): `top_k`, `show_titles`, `max_words` and `deduplicate`.

    Raises:
        ImportError: If a library is not installed.
        ValueError: If there is no index, or no retriever answers; names the option and what to do.
    """
    opened = [_as_tool(source, HTTPSearch, "search_url", options) for source in urls]
    return opened + [_as_tool(source, _open_index, "search_index", options) for source in indexes]


def _as_tool(source: str, open_place: Callable[..., PassageSearch], option: str, options: dict) -> Callable:
    name, place = _name_and_place(source)
    try:
        search = open_place(place, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {error}") from error
    return search.search if name is None else search.as_tool(f"search_{name}", name)


def check_retrievers(urls: Sequence[str]) -> None:
    """
    Send each retriever a query.

    Raises:
        ValueError: If one cannot be reached, or answers with something else than passages.
    """
    for source in urls:
        try:
            HTTPSearch(_name_and_place(source)[1], top_k=1).retrieve(["capital"])
        except OSError as error:
            raise ValueError(
                f"search_url: {str(error).rstrip('.')}. Start one there with a2tgpo retriever."
            ) from error


def _open_index(place: str, **options) -> PassageSearch:
    return BM25Search(load_atlas().passages, **options) if place == ATLAS else open_search(place, **options)


def _name_and_place(source: str) -> tuple[str | None, str]:
    match = NAMED.fullmatch(source)
    return match.groups() if match else (None, source)
