"""Question sets, from files or the Hub, as datasets for a TRL trainer and the rewards of this package."""

import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Union

from .examples import to_example
from .files import READERS, find_files, read_rows
from .layouts import Columns
from .pictures import NO_PICTURES, has_column, picture_columns, place_pictures, read_pictures
from .prompts import DEFAULT_TEMPLATE, PromptForm

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


class DataError(ValueError):
    """A question set that is bad at some place; while training goes on, if it is streamed."""


def load_questions(
    source: Union[str, PathLike, Sequence[str | PathLike], "Dataset", "IterableDataset"],
    split: str = "train",
    *,
    columns: Mapping[str, str | Sequence[str] | None] | None = None,
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
        columns (`Mapping[str, str | Sequence[str] | None]`, *optional*):
            Where `"answer"` stands, and `"question"` or a ready `"prompt"` or both, and `"data_source"` if there is one.
            Dots lead into nested columns; several columns of answers are joined, the canonical one first. Without it,
            the layout is recognised by the columns of each file's first row. `"images"`, with the others or alone, is the
            column of pictures, or `None` where the columns `images` and `image` hold none.
        prompt_template (`str`, *optional*):
            The prompt; `{question}` stands for the question, and other braces for themselves. Without it, ready prompts
            are kept, and other questions get `default_template`.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether prompts are lists of messages instead of texts. Ready prompts are brought into that form. Rows with
            pictures need it.
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
        of them empty or there twice; `question`, `None` where there is but a ready prompt; and `data_source`. If a row has
        pictures, also `images`; with `streaming` if the first row of a set has a column for them.

    Raises:
        `FileNotFoundError`: there is no such file, folder or dataset.
        `DataError`: a row or a file is bad, or its layout is not known; the error says which and where.
        `ValueError`: an option does not fit.
    """
    from datasets import Dataset, IterableDataset

    if not isinstance(columns, Mapping | None):
        raise ValueError(f"columns is {columns!r}: give a mapping, such as {{'question': 'query', 'answer': 'gold'}}.")
    layout = {field: path for field, path in (columns or {}).items() if field != "images"}
    arguments = {
        "sets": _find_sets(source, split, subset, streaming),
        "columns": Columns.from_option(layout) if layout or columns == {} else None,
        "images": picture_columns(columns or {}),
        "prompts": PromptForm(default_template if prompt_template is None else prompt_template, conversational),
        "keep_ready": prompt_template is None,
        "data_source": data_source,
    }
    if streaming:
        pictured = conversational and any(
            has_column(_first_row(*one), arguments["images"]) for one in arguments["sets"]
        )
        features, arguments = _features(conversational, pictured), {**arguments, "pictured": pictured}
        return IterableDataset.from_generator(_examples, features=features, gen_kwargs=arguments)
    examples = list(_examples(**arguments))
    return Dataset.from_list(examples, features=_features(conversational, "images" in examples[0]))


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


def _features(conversational: bool, pictured: bool) -> "Features":
    from datasets import Features, Image, List, Value

    text = Value("string")
    content = List({"type": text, "text": text}) if pictured else text
    prompt = List({"role": text, "content": content}) if conversational else text
    features = {"prompt": prompt, "answer": List(text), "question": text, "data_source": text}
    return Features(features | ({"images": List(Image())} if pictured else {}))


def _examples(pictured: bool | None = None, **arguments) -> Iterator[dict]:
    """The examples of all sets. Whether there are pictures decides on their form; without it they are looked through first."""
    try:
        rows = _read_examples(**arguments)
        if pictured is None:
            rows = list(rows)
            pictured = any(example["images"] for _, example in rows)
        for where, example in rows:
            yield _in_form(example, pictured, where)
    except ValueError as error:
        raise DataError(str(error)) from error


def _read_examples(
    sets: list[tuple],
    columns: Columns | None,
    images: tuple[str, ...],
    prompts: PromptForm,
    keep_ready: bool,
    data_source: str | None,
) -> Iterator[tuple[str, dict]]:
    """Read one set after the other, each in its own layout if `columns` does not give one for all."""
    for name, one in sets:
        read_as, where = columns, None
        folder = one.parent if isinstance(one, Path) else None
        for where, row in _rows(name, one):
            if read_as is None and isinstance(row, dict):
                read_as = Columns.recognise(row, where)
            example = to_example(row, read_as, prompts, keep_ready, where)
            example["data_source"] = data_source or example["data_source"] or name
            yield where, {**example, "images": read_pictures(row, images, folder, where)}
        if where is None:
            raise ValueError(f"{one} holds no rows.")


def _in_form(example: dict, pictured: bool, where: str) -> dict:
    """An example with the pictures of its row, or as of a set without any."""
    images, prompt = example.pop("images"), example["prompt"]
    if images and isinstance(prompt, str):
        raise ValueError(
            f"{where} has pictures, and its prompt is text, in which they have no place: load it with conversational=True. "
            f"{NO_PICTURES}"
        )
    if images and not pictured:
        raise ValueError(
            f"{where} has pictures, and the first row of no set has a column for them, which a stream needs to know: give it one, "
            "empty perhaps, or load the set without streaming."
        )
    if isinstance(prompt, str) or not (pictured or any(isinstance(message["content"], list) for message in prompt)):
        return example
    placed = place_pictures(prompt, len(images), where)
    return {**example, "prompt": placed, "images": images}


def _first_row(name: str | None, one: Union[Path, "Dataset", "IterableDataset"]) -> object:
    """`None` if there is none, or a bad one, which is an error once it is reached."""
    try:
        return next(_rows(name, one), (None, None))[1]
    except ValueError:
        return None


def _rows(name: str | None, one: Union[Path, "Dataset", "IterableDataset"]) -> Iterator[tuple[str, object]]:
    """The rows of a set, each with what to call it."""
    if isinstance(one, Path):
        yield from read_rows(one)
        return
    for index, row in enumerate(_undecoded(one.with_format(None))):
        yield f"{name or 'source'}, row {index} (from 0)", row


def _undecoded(dataset: Union["Dataset", "IterableDataset"]) -> Union["Dataset", "IterableDataset"]:
    """A dataset whose pictures stay the files that they are; a stream may have to fetch them, which it does by itself."""
    from datasets import Dataset, Image, List

    for column, kind in dataset.features.items() if isinstance(dataset, Dataset) else ():
        if isinstance(kind, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        elif isinstance(getattr(kind, "feature", None), Image):
            dataset = dataset.cast_column(column, List(Image(decode=False)))
    return dataset
