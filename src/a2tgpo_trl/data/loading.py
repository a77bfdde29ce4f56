"""Question sets, from files or the Hub, as datasets for a TRL trainer and the rewards of this package."""

import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Union

from .examples import to_example
from .files import READERS, find_files, read_rows
from .layouts import Columns
from .prompts import DEFAULT_TEMPLATE, PromptForm

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


class DataError(ValueError):
    """A question set that is bad at some place; while training goes on, if it is streamed."""


def load_questions(
    source: Union[str, PathLike, Sequence[str | PathLike], "Dataset", "IterableDataset"],
    split: str = "train",
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    prompt_template: str | None = None,
    conversational: bool = False,
    data_source: str | None = None,
    subset: str | None = None,
    streaming: bool = False,
    default_template: str = DEFAULT_TEMPLATE,
) -> Union["Dataset", "IterableDataset"]:
    """Load a question set: Search-R1's and FlashRAG's layouts, those of the sets themselves, or one's own.

    Args:
        source (`str`, `PathLike`, a sequence of them, `Dataset` or `IterableDataset`):
            Files (`.jsonl`, `.json`, `.parquet`), patterns of them or folders; the name of a dataset on the Hub; or a
            dataset that is loaded already. `docs/data.md` shows the layouts.
        split (`str`, *optional*, defaults to `"train"`):
            The split of a dataset on the Hub. Of a folder, the files that have this word in their name.
        columns (`Mapping[str, str | Sequence[str]]`, *optional*):
            Where `"answer"` stands, and `"question"` or a ready `"prompt"` or both, and `"data_source"` if there is one.
            Dots lead into nested columns; several columns of answers are joined, the canonical one first. Without it,
            the layout is recognised by the columns of each file's first row.
        prompt_template (`str`, *optional*):
            The prompt; `{question}` stands for the question, and other braces for themselves. Without it, ready prompts
            are kept, and other questions get `default_template`.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether prompts are lists of messages instead of texts. Ready prompts are brought into that form.
        data_source (`str`, *optional*):
            Name of the set. Without it, what the rows say in their column `data_source` or `source`, else the name of
            the file without its ending, or of the dataset on the Hub.
        subset (`str`, *optional*):
            The subset (configuration) of a dataset on the Hub.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether rows are read when they are asked for, instead of all at once. Bad rows are errors when they are
            reached.
        default_template (`str`, *optional*, defaults to `"Question: {question}\\n"`):
            The prompt where there is neither a ready one nor a `prompt_template`.

    Returns:
        `Dataset` or `IterableDataset`: the columns `prompt`; `answer`, a list of aliases, the canonical one first, none
        of them empty or there twice; `question`, `None` where there is but a ready prompt; and `data_source`.

    Raises:
        `FileNotFoundError`: there is no such file, folder or dataset.
        `DataError`: a row or a file is bad, or its layout is not known; the error says which and where.
        `ValueError`: an option does not fit.
    """
    from datasets import Dataset, IterableDataset

    arguments = {
        "sets": _find_sets(source, split, subset, streaming),
        "columns": None if columns is None else Columns.from_option(columns),
        "prompts": PromptForm(default_template if prompt_template is None else prompt_template, conversational),
        "keep_ready": prompt_template is None,
        "data_source": data_source,
    }
    features = _features(conversational)
    if streaming:
        return IterableDataset.from_generator(_examples, features=features, gen_kwargs=arguments)
    return Dataset.from_list(list(_examples(**arguments)), features=features)


def _find_sets(source, split: str, subset: str | None, streaming: bool) -> list[tuple]:
    """List what is to be read, each with its name: files, or one dataset. `datasets` takes the entries for shards."""
    from datasets import Dataset, IterableDataset

    if isinstance(source, str) and _is_hub_name(source):
        name = source if subset is None else f"{source}/{subset}"
        return [(name, _load_from_hub(source, split, subset, streaming))]
    if subset is not None:
        raise ValueError(f"subset is {subset!r}, and source is no name of a dataset on the Hub: leave subset out.")
    if isinstance(source, (Dataset, IterableDataset)):
        return [(None, source)]
    if isinstance(source, dict):
        raise ValueError(f"source is a {type(source).__name__} of {list(source)}; give one of these datasets.")
    paths = [source] if isinstance(source, (str, PathLike)) else source
    found = [(file.stem, file) for path in paths for file in find_files(path, split)]
    if not found:
        raise ValueError("source is an empty list; name at least one file.")
    return found


def _is_hub_name(source: str) -> bool:
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None
    return is_name and not Path(source).exists() and Path(source).suffix not in READERS


def _load_from_hub(name: str, split: str, subset: str | None, streaming: bool) -> Union["Dataset", "IterableDataset"]:
    from datasets import load_dataset

    try:
        return load_dataset(name, subset, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"source is {name!r}: there is no such file or folder, and as a dataset of the Hub it cannot be read ({error})."
        ) from error


def _features(conversational: bool) -> "Features":
    from datasets import Features, List, Value

    text = Value("string")
    prompt = List({"role": text, "content": text}) if conversational else text
    return Features({"prompt": prompt, "answer": List(text), "question": text, "data_source": text})


def _examples(**arguments) -> Iterator[dict]:
    try:
        yield from _read_examples(**arguments)
    except ValueError as error:
        raise DataError(str(error)) from error


def _read_examples(
    sets: list[tuple], columns: Columns | None, prompts: PromptForm, keep_ready: bool, data_source: str | None
) -> Iterator[dict]:
    """Read one set after the other, each in its own layout if `columns` does not give one for all."""
    for name, one in sets:
        read_as, where = columns, None
        for where, row in read_rows(one) if isinstance(one, Path) else _rows_of_dataset(one, name):
            if read_as is None and isinstance(row, dict):
                read_as = Columns.recognise(row, where)
            _refuse_pictures(row, where)
            example = to_example(row, read_as, prompts, keep_ready, where)
            yield {**example, "data_source": data_source or example["data_source"] or name}
        if where is None:
            raise ValueError(f"{one} holds no rows.")


def _refuse_pictures(row: object, where: str) -> None:
    """A question about a picture would be asked without it."""
    columns = [name for name in ("image", "images") if isinstance(row, dict) and row.get(name)]
    if columns:
        raise ValueError(
            f"{where} has pictures in {columns[0]!r}, and only text is read: remove them if the text is enough."
        )


def _rows_of_dataset(dataset: Union["Dataset", "IterableDataset"], name: str | None) -> Iterator[tuple[str, dict]]:
    for index, row in enumerate(dataset.with_format(None)):
        yield f"{name or 'source'}, row {index} (from 0)", row
