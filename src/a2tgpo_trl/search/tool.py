"""What all searches have in common: the tool that a model calls."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from .rendering import render

NO_QUERY = "The search query is empty."
NO_RESULT = "No passage matches the search query."


class PassageSearch(ABC):
    """A search over passages, to be passed to a trainer as the tool `instance.search`.

    Args:
        top_k (`int`, *optional*, defaults to `3`):
            Greatest number of passages a query returns.
        show_titles (`bool`, *optional*, defaults to `True`):
            How [`~PassageSearch.search`] renders what it found: numbered lines `(1) title: text`, or with `False` the
            bare texts, one a line.
        max_words (`int`, *optional*):
            Words of a text that [`~PassageSearch.search`] shows; a longer text is cut there and ends with `…`. By
            default texts are whole.
        deduplicate (`bool`, *optional*, defaults to `True`):
            Whether [`~PassageSearch.search`] leaves out a passage that would look like a better one.

    Raises:
        `ValueError`: `top_k` or `max_words` is below 1.
    """

    def __init__(
        self, top_k: int = 3, show_titles: bool = True, max_words: int | None = None, deduplicate: bool = True
    ):
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; a search returns at least one passage, so give 1 or more.")
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words is {max_words}; give 1 or more, or None to show whole texts.")
        self.top_k = top_k
        self.show_titles = show_titles
        self.max_words = max_words
        self.deduplicate = deduplicate

    @abstractmethod
    def retrieve(self, queries: Sequence[str]) -> list[list[dict]]:
        """Find the passages for several queries: for each at most `top_k`, best first, with their `"score"`."""

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
        found = self.retrieve([query])[0]
        return render(found, self.show_titles, self.max_words, self.deduplicate) if found else NO_RESULT

    def as_tool(self, name: str, corpus: str) -> Callable[[str], str]:
        """Give the search a name of its own, for a model that has several.

        Args:
            name (`str`):
                What the model calls, such as `"search_news"`; with text tags it is the tag too.
            corpus (`str`):
                What is searched, such as `"news of 2024"`. It takes the place of "the corpus" in the tool's
                description.

        Returns:
            `Callable[[str], str]`: a function that does what [`~PassageSearch.search`] does.

        Raises:
            `ValueError`: `name` is not a name that a function can have.
        """
        if not name.isidentifier():
            raise ValueError(f"name is {name!r}; a tool's name has letters, digits and underscores only.")

        def search(query: str) -> str:
            return self.search(query)

        search.__name__ = search.__qualname__ = name
        search.__doc__ = inspect.getdoc(PassageSearch.search).replace("the corpus", corpus, 1)
        return search
