"""BM25 over a list of passages, in process: a search tool that needs no server and no download."""

import unicodedata
from collections.abc import Sequence

import numpy as np

NO_QUERY = "The search query is empty."
NO_RESULT = "No passage matches the search query."


class BM25Search:
    """Lexical search over passages held in memory, to be passed to a trainer as the tool `instance.search`.

    Titles are searched together with the texts. Words are compared without case and without accents ("Brasilia" finds
    "Brasília"), English function words are left out, and passages that score the same come in the order they were
    given, so that the same query always gets the same answer. Searching changes nothing in the instance: one may serve
    many threads.

    Args:
        passages (`Sequence[dict | str]`):
            What is searched: texts, or dicts with a `"text"` and, if they have one, a `"title"`. Other keys are kept
            and come back with [`~BM25Search.retrieve`].
        top_k (`int`, *optional*, defaults to `3`):
            Greatest number of passages a query returns. Passages that share no word with the query never count.
        show_titles (`bool`, *optional*, defaults to `True`):
            How [`~BM25Search.search`] renders what it found: numbered lines `(1) title: text`, or with `False` the
            bare texts, one a line.

    Raises:
        `ImportError`: bm25s is not installed.
        `ValueError`: `top_k` is below 1, there are no passages, or there is nothing in them to search.

    Example:

    ```python
    >>> from a2tgpo_trl.search import BM25Search

    >>> tool = BM25Search([{"title": "Lyon", "text": "Lyon is a city in France."}, "Bern is a city in Switzerland."])
    >>> tool.search("Where is Lyon?")
    '(1) Lyon: Lyon is a city in France.'

    ```
    """

    def __init__(self, passages: Sequence[dict | str], top_k: int = 3, show_titles: bool = True):
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; a search returns at least one passage, so give 1 or more.")
        self.passages = [_as_passage(passage, index) for index, passage in enumerate(passages)]
        if not self.passages:
            raise ValueError("passages is empty; give at least one passage to search.")
        self.top_k = top_k
        self.show_titles = show_titles
        self._index = _build_index([f"{passage['title']} {passage['text']}" for passage in self.passages])

    def search(self, query: str) -> str:
        """
        Searches the corpus and returns the passages that match best.

        Args:
            query: What to look for, in a few words.

        Returns:
            The passages found, best first, or a sentence saying that there are none.
        """
        if not query.strip():
            return NO_QUERY
        hits = self.retrieve([query])[0]
        if not hits:
            return NO_RESULT
        if not self.show_titles:
            return "\n".join(hit["text"] for hit in hits)
        return "\n".join(f"({rank}) {_with_title(hit)}" for rank, hit in enumerate(hits, start=1))

    def retrieve(self, queries: Sequence[str]) -> list[list[dict]]:
        """Find the passages for several queries, with their scores.

        Args:
            queries (`Sequence[str]`):
                What to look for.

        Returns:
            `list[list[dict]]`: for each query at most `top_k` passages, best first: copies of what was given, with
            `"title"`, `"text"` and the BM25 `"score"`, which is above zero. Empty where nothing matches.
        """
        return [self._retrieve_one(query_words) for query_words in _words(queries)]

    def _retrieve_one(self, query_words: list[str]) -> list[dict]:
        if not query_words:
            return []
        scores = self._index.get_scores(query_words)  # (P,)
        found = np.flatnonzero(scores > 0)
        best = found[np.argsort(-scores[found], kind="stable")][: self.top_k]
        return [{**self.passages[position], "score": float(scores[position])} for position in best]


def _as_passage(passage: dict | str, index: int) -> dict:
    """Give a passage a title and a text, or say which one lacks its text."""
    if isinstance(passage, str):
        return {"title": "", "text": passage}
    if "text" not in passage:
        raise ValueError(f'passages[{index}] has no "text"; it has {sorted(passage)}.')
    return {**passage, "title": passage.get("title") or ""}


def _with_title(passage: dict) -> str:
    return f"{passage['title']}: {passage['text']}" if passage["title"] else passage["text"]


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Split texts into the words that BM25 counts: lower case, no accents, no English function words."""
    bm25s = _import_bm25s()
    plain = [_without_accents(text) for text in texts]
    split = bm25s.tokenize(plain, stopwords="en", return_ids=False, show_progress=False)
    return [[word for word in words if word] for words in split]  # bm25s writes an empty text as [""]


def _without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _build_index(texts: list[str]):
    words = _words(texts)
    if not any(words):
        raise ValueError(
            "passages hold no word to search for; single letters and English function words do not count."
        )
    index = _import_bm25s().BM25()
    index.index(words, show_progress=False)
    return index


def _import_bm25s():
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("BM25Search needs bm25s: pip install 'a2tgpo-trl[search]'.") from error
    return bm25s
