"""Layouts of question sets: in which columns the question, its answers and a ready prompt stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Where the answers stand, the canonical one first. A row has the first layout all of whose columns it has.
LAYOUTS = {
    "Search-R1": ("reward_model.ground_truth.target",),
    "FlashRAG": ("golden_answers",),
    "PopQA": ("possible_answers",),
    "TriviaQA": ("answer.value", "answer.aliases"),
    "MuSiQue": ("answer", "answer_aliases"),
    "GSM8K": ("answer.####",),
    "plain": ("answer",),
}
FINAL = "####"
"""The last part of a path into a worked solution: it leads to what stands after this mark, the final answer."""
_FIELDS = ("question", "answer", "prompt", "data_source")
_EXAMPLE = "columns={'question': 'query', 'answer': 'reward_model.ground_truth.target'}"


@dataclass(frozen=True)
class Columns:
    """Where to read what in a row; a path leads into nested columns by dots.

    Attributes:
        answer (`tuple[str, ...]`):
            Paths of the answers, the canonical one first. One that ends in `.####` leads to the final answer of a worked
            solution.
        question, prompt, data_source (`str`, *optional*):
            Paths of the question, of a prompt that is ready, and of the name of the set that the row is from.
    """

    answer: tuple[str, ...]
    question: str | None = None
    prompt: str | None = None
    data_source: str | None = None

    @classmethod
    def from_option(cls, columns: Mapping[str, str | Sequence[str]]) -> "Columns":
        """Read the option `columns`.

        Raises:
            `ValueError`: it has other keys, lacks the answer or both question and prompt, or holds no paths.
        """
        unknown = sorted(set(columns) - set(_FIELDS))
        if unknown:
            raise ValueError(f"columns has the keys {unknown}; the keys there are: {[*_FIELDS, 'images']}.")
        answer = columns.get("answer") or ()
        paths = {**columns, "answer": (answer,) if isinstance(answer, str) else tuple(answer)}
        texts = [*paths["answer"], *(path for field, path in paths.items() if field != "answer")]
        if not answer or not {"question", "prompt"} & set(columns) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"columns is {dict(columns)}; it must name the columns of the answer, and of the question or a ready "
                f"prompt: {_EXAMPLE}."
            )
        return cls(**paths)

    @classmethod
    def recognise(cls, row: dict, where: str) -> "Columns":
        """Find the columns of a row whose layout is known.

        Raises:
            `ValueError`: the layout is not known.
        """
        answer = next((paths for paths in LAYOUTS.values() if all(has(row, path) for path in paths)), None)
        texts = {field: field for field in ("question", "prompt") if field in row}
        if answer is None or not texts:
            raise ValueError(
                f"{where} has the columns {sorted(row)}, which is none of the layouts {list(LAYOUTS)}. Say where the "
                f"question and the answer stand, with dots into nested columns: {_EXAMPLE}."
            )
        source = next((name for name in ("data_source", "source") if isinstance(row.get(name), str)), None)
        return cls(answer, **texts, data_source=source)


def has(row: dict, path: str) -> bool:
    """Whether a row has the column that a path leads to, empty or not."""
    if path in row:
        return True
    first, _, rest = path.partition(".")
    if rest == FINAL:
        return isinstance(row.get(first), str) and FINAL in row[first]
    return bool(rest) and isinstance(row.get(first), dict) and has(row[first], rest)


def read(row: dict, path: str | None) -> object:
    """The value that a path leads to; `None` where there is none."""
    if path is None or not has(row, path):
        return None
    if path in row:
        return row[path]
    first, _, rest = path.partition(".")
    return row[first].rpartition(FINAL)[2] if rest == FINAL else read(row[first], rest)
