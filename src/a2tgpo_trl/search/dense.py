"""Search by meaning: passages and queries as vectors of a sentence encoder, compared exactly."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .folder import new_index, open_index
from .passages import as_passages, contents_of
from .stored import StoredPassages, store_passages
from .tool import PassageSearch

KIND = "dense"
EMBEDDINGS = "embeddings.npy"
CHUNK = 1024
"""Passages that are encoded before their vectors are written."""


class DenseSearch(PassageSearch):
    """Search by inner product of normalised sentence embeddings, as the tool `instance.search`.

    Every passage is compared with the query, so results are exact, and time grows with the corpus. One instance may
    serve many threads; they take turns at the encoder.

    Args:
        passages (`Sequence[dict | str]`):
            What is searched, as for [`BM25Search`].
        encoder (`str`):
            Name or folder of a sentence-transformers model.
        query_prefix (`str`, *optional*, defaults to `""`):
            Put before each query; the E5 models want `"query: "`.
        passage_prefix (`str`, *optional*, defaults to `""`):
            Put before each passage; the E5 models want `"passage: "`.
        top_k (`int`, *optional*, defaults to `3`):
            Number of passages a query returns.
        show_titles (`bool`, *optional*, defaults to `True`):
            How [`~DenseSearch.search`] renders what it found: numbered lines `(1) title: text`, or with `False` the
            bare texts, one a line.
        max_words (`int`, *optional*):
            Words of a text that [`~DenseSearch.search`] shows; a longer text is cut there and ends with `…`. By default
            texts are whole.
        deduplicate (`bool`, *optional*, defaults to `True`):
            Whether [`~DenseSearch.search`] leaves out a passage that would look like a better one.

    Raises:
        `ImportError`: sentence-transformers or faiss is not installed.
        `ValueError`: `top_k` or `max_words` is below 1, or there are no passages.
    """

    def __init__(
        self,
        passages: Sequence[dict | str],
        encoder: str,
        query_prefix: str = "",
        passage_prefix: str = "",
        top_k: int = 3,
        show_titles: bool = True,
        max_words: int | None = None,
        deduplicate: bool = True,
    ):
        super().__init__(top_k, show_titles, max_words, deduplicate)
        self.passages = as_passages(passages)
        self._encoder = _Encoder(encoder)
        self._query_prefix = query_prefix
        self._embeddings = np.concatenate(list(_encoded(self.passages, self._encoder, passage_prefix)))  # (P, D)

    @staticmethod
    def build(
        corpus: str | Path, folder: str | Path, encoder: str, query_prefix: str = "", passage_prefix: str = ""
    ) -> None:
        """Write an index of a corpus: the passages, and a vector of float32 for each.

        Args:
            corpus (`str | Path`):
                JSON of one passage a line.
            folder (`str | Path`):
                Where to write the index. It must not be there yet.
            encoder (`str`):
                Name or folder of a sentence-transformers model. [`~DenseSearch.load`] loads it again.
            query_prefix (`str`, *optional*, defaults to `""`):
                Put before each query.
            passage_prefix (`str`, *optional*, defaults to `""`):
                Put before each passage.

        Raises:
            `FileExistsError`: the folder is there.
            `ImportError`: sentence-transformers or faiss is not installed.
            `ValueError`: a line of the corpus is no passage, or there are none.
        """
        corpus = Path(corpus)
        description = {
            "kind": KIND,
            "corpus_bytes": corpus.stat().st_size,
            "encoder": encoder,
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
        }
        model = _Encoder(encoder)
        with new_index(Path(folder), description) as partial:
            store_passages(corpus, partial)
            passages = StoredPassages(partial)
            shape = (len(passages), model.dimension)
            embeddings = np.lib.format.open_memmap(partial / EMBEDDINGS, mode="w+", dtype=np.float32, shape=shape)
            start = 0
            for chunk in _encoded(passages, model, passage_prefix):
                embeddings[start : start + len(chunk)] = chunk
                start += len(chunk)
            embeddings.flush()

    @classmethod
    def load(cls, folder: str | Path, **options) -> "DenseSearch":
        """Open an index that [`~DenseSearch.build`] wrote. Passages and vectors are mapped into memory.

        Args:
            folder (`str | Path`):
                The index.
            options (`Any`):
                `top_k`, `show_titles`, `max_words` and `deduplicate`, as for the constructor.

        Returns:
            `DenseSearch`: the search, with the encoder and the prefix of queries that the index was built with.

        Raises:
            `FileNotFoundError`: there is no index in the folder.
            `ImportError`: sentence-transformers or faiss is not installed.
            `ValueError`: the index is of another kind or format.
        """
        folder = Path(folder)
        description = open_index(folder, KIND)
        search = cls.__new__(cls)
        PassageSearch.__init__(search, **options)
        search.passages = StoredPassages(folder)
        search._encoder = _Encoder(description["encoder"])
        search._query_prefix = description["query_prefix"]
        search._embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
        return search

    def retrieve(self, queries: Sequence[str], top_k: int | None = None) -> list[list[dict]]:
        """Find the passages for several queries, with their scores.

        Args:
            queries (`Sequence[str]`):
                What to look for.
            top_k (`int`, *optional*):
                Number of passages for each, if not that of the instance.

        Returns:
            `list[list[dict]]`: for each query `top_k` passages or all there are, nearest first: copies of what was
            given, with `"title"`, `"text"` and the cosine similarity as `"score"`.
        """
        if not queries:
            return []
        vectors = self._encoder.encode([self._query_prefix + query for query in queries])  # (Q, D)
        scores, positions = _import_faiss().knn(
            vectors,
            np.asarray(self._embeddings),
            min(top_k or self.top_k, len(self.passages)),
            metric=_import_faiss().METRIC_INNER_PRODUCT,
        )
        return [
            [{**self.passages[position], "score": score} for position, score in zip(*row, strict=True)]
            for row in zip(positions.tolist(), scores.tolist(), strict=True)
        ]


class _Encoder:
    """A sentence-transformers model that threads may share; its tokenizer cannot serve two at once."""

    def __init__(self, name: str):
        _import_faiss()
        self._model = _import_sentence_transformers().SentenceTransformer(name)
        self._lock = threading.Lock()
        self.dimension = self._model.get_embedding_dimension()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of length 1, (texts, dimension) float32."""
        valid = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        with self._lock:
            return self._model.encode(valid, normalize_embeddings=True, show_progress_bar=False)


def _encoded(passages: Sequence[dict], encoder: _Encoder, prefix: str) -> Iterator[np.ndarray]:
    for start in range(0, len(passages), CHUNK):
        chunk = [passages[position] for position in range(start, min(start + CHUNK, len(passages)))]
        yield encoder.encode([prefix + contents_of(passage) for passage in chunk])


def _import_sentence_transformers():
    try:
        import sentence_transformers
    except ImportError as error:
        raise ImportError("DenseSearch needs sentence-transformers: pip install 'a2tgpo-trl[dense]'.") from error
    return sentence_transformers


def _import_faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError("DenseSearch needs faiss: pip install 'a2tgpo-trl[dense]'.") from error
    return faiss
