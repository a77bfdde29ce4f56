"""BM25 over passages, in process: a search tool that needs no server and no download."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .folder import new_index, open_index
from .passages import as_passages
from .stored import StoredPassages, store_passages
from .tool import PassageSearch
from .words import passage_words, query_words

KIND = "bm25"
BLOCK = 1024
"""Scores of which the highest is found at once."""


class BM25Search(PassageSearch):
    """Lexical search over passages, to be passed to a trainer as the tool `instance.search`.

    Titles are searched together with the texts. Words are compared without case and, in Latin, Greek and Cyrillic,
    without accents ("Brasilia" finds "Brasília"); English function words are left out. Texts in scripts that put no
    spaces between words are compared by neighbouring characters. Passages that score the same come in the order they
    were given, so that the same query always gets the same answer. Searching changes nothing in the instance: one may
    serve many threads.

    Passages given to the constructor are held in memory. For large corpora [`~BM25Search.build`] writes an index once,
    and [`~BM25Search.load`] maps it into memory, where all processes of a machine share it.

    Args:
        passages (`Sequence[dict | str]`):
            What is searched: texts, or dicts with a `"text"` and, if they have one, a `"title"`, or with `"contents"`
            as in Search-R1's corpora. Other keys are kept and come back with [`~BM25Search.retrieve`].
        top_k (`int`, *optional*, defaults to `3`):
            Greatest number of passages a query returns. Passages that share no word with the query never count.
        show_titles (`bool`, *optional*, defaults to `True`):
            How [`~BM25Search.search`] renders what it found: numbered lines `(1) title: text`, or with `False` the
            bare texts, one a line.
        max_words (`int`, *optional*):
            Words of a text that [`~BM25Search.search`] shows; a longer text is cut there and ends with `…`. By default
            texts are whole.
        deduplicate (`bool`, *optional*, defaults to `True`):
            Whether [`~BM25Search.search`] leaves out a passage that would look like a better one.

    Raises:
        `ImportError`: bm25s is not installed.
        `ValueError`: `top_k` or `max_words` is below 1, there are no passages, or there is nothing in them to search.

    Example:

    ```python
    >>> from a2tgpo_trl.search import BM25Search

    >>> tool = BM25Search([{"title": "Lyon", "text": "Lyon is a city in France."}, "Bern is a city in Switzerland."])
    >>> tool.search("Where is Lyon?")
    '(1) Lyon: Lyon is a city in France.'

    ```
    """

    def __init__(
        self,
        passages: Sequence[dict | str],
        top_k: int = 3,
        show_titles: bool = True,
        max_words: int | None = None,
        deduplicate: bool = True,
    ):
        super().__init__(top_k, show_titles, max_words, deduplicate)
        self.passages = as_passages(passages)
        self._index = _build_index(self.passages, "passages")

    @staticmethod
    def build(corpus: str | Path, folder: str | Path) -> None:
        """Write an index of a corpus. The folder appears when it is complete, and then needs the corpus no more.

        Args:
            corpus (`str | Path`):
                JSON of one passage a line, as the constructor takes them.
            folder (`str | Path`):
                Where to write the index. It must not be there yet.

        Raises:
            `FileExistsError`: the folder is there.
            `ImportError`: bm25s is not installed.
            `ValueError`: a line of the corpus is no passage, or there is nothing to search.
        """
        corpus = Path(corpus)
        with new_index(Path(folder), {"kind": KIND, "corpus_bytes": corpus.stat().st_size}) as partial:
            store_passages(corpus, partial)
            _build_index(StoredPassages(partial), str(corpus)).save(partial)

    @classmethod
    def load(cls, folder: str | Path, **options) -> "BM25Search":
        """Open an index that [`~BM25Search.build`] wrote.

        Args:
            folder (`str | Path`):
                The index.
            options (`Any`):
                `top_k`, `show_titles`, `max_words` and `deduplicate`, as for the constructor.

        Returns:
            `BM25Search`: a search that reads from the folder what a query needs; its results are those of an instance
            that holds the same passages.

        Raises:
            `FileNotFoundError`: there is no index in the folder.
            `ImportError`: bm25s is not installed.
            `ValueError`: the index is of another kind or format.
        """
        folder = Path(folder)
        open_index(folder, KIND)
        search = cls.__new__(cls)
        PassageSearch.__init__(search, **options)
        search.passages = StoredPassages(folder)
        search._index = _import_bm25s().BM25.load(folder, mmap=True)
        return search

    def retrieve(self, queries: Sequence[str], top_k: int | None = None) -> list[list[dict]]:
        """Find the passages for several queries, with their scores.

        Args:
            queries (`Sequence[str]`):
                What to look for.
            top_k (`int`, *optional*):
                Greatest number of passages for each, if not that of the instance.

        Returns:
            `list[list[dict]]`: for each query at most `top_k` passages, best first: copies of what was given, with
            `"title"`, `"text"` and the BM25 `"score"`, which is above zero. Empty where nothing matches.
        """
        return [self._retrieve_one(query_words(query), top_k or self.top_k) for query in queries]

    def _retrieve_one(self, words: list[str], top_k: int) -> list[dict]:
        if not words:
            return []
        scores = self._index.get_scores(words)  # (P,)
        return [{**self.passages[position], "score": float(scores[position])} for position in _best(scores, top_k)]


def _best(scores: np.ndarray, top_k: int) -> list[int]:
    """Positions of the highest scores above zero, highest first, equal ones in order; without sorting all of them."""
    least = _lower_bound(scores, top_k)
    found = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    values = scores[found]
    if len(found) > top_k:
        lowest = np.partition(values, -top_k)[-top_k]
        above = found[values > lowest]
        found = np.concatenate([above, found[values == lowest][: top_k - len(above)]])
    return found[np.lexsort((found, -scores[found]))].tolist()


def _lower_bound(scores: np.ndarray, top_k: int) -> float:
    """A score that `top_k` passages reach, cheap to find: the highest one of each of as many blocks does."""
    blocks = len(scores) // BLOCK
    if blocks < top_k:
        return 0.0
    highest = scores[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
    return float(np.partition(highest, -top_k)[-top_k])


def _build_index(passages: Sequence[dict], name: str):
    index, ids = _import_bm25s().BM25(), []
    vocabulary: dict[str, int] = {}
    for passage in passages:
        words = passage_words(f"{passage['title']} {passage['text']}")
        ids.append([vocabulary.setdefault(word, len(vocabulary)) for word in words])
    if not vocabulary:
        raise ValueError(f"{name} hold no word to search for; English function words and punctuation do not count.")
    index.index((ids, vocabulary), show_progress=False)
    return index


def _import_bm25s():
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("BM25Search needs bm25s: pip install 'a2tgpo-trl[search]'.") from error
    return bm25s
