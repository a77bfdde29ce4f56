"""Question sets with pictures: where they are found, where they stand in prompts, and what is refused."""

import json
import re
from io import BytesIO
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from a2tgpo_trl.data import DataError, load_questions

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
ASKED = {"question": "What is this?", "answer": "red"}


def file_of(color, kind="PNG", size=(8, 6)):
    file = BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures beside the data, which is not the working directory."""
    (tmp_path / "pics").mkdir()
    for color in ("red", "blue"):
        (tmp_path / "pics" / f"{color}.png").write_bytes(file_of(color))
    return tmp_path


def write(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def colors(row):
    return [picture.getpixel((0, 0)) for picture in row["images"]]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def user(*blocks):
    return [{"role": "user", "content": list(blocks)}]


def text(words):
    return {"type": "text", "text": words}


IMAGE = {"type": "image", "text": None}


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_are_relative_to_the_file(folder, streaming):
    rows = [
        {**ASKED, "image": "pics/red.png"},
        {**ASKED, "image": None},
        {**ASKED, "images": ["pics/blue.png", str(folder / "pics" / "red.png")]},
    ]
    dataset = load_questions(
        write(folder, *rows), conversational=True, prompt_template="{question}", streaming=streaming
    )
    found = list(dataset)
    assert [colors(row) for row in found] == [[RED], [], [BLUE, RED]]
    assert [row["prompt"] for row in found] == [user(*[IMAGE] * number, text("What is this?")) for number in (1, 0, 2)]
    assert [row["answer"] for row in found] == [["red"]] * 3 and found[0]["data_source"] == "rows"


def test_the_documented_rows(folder):
    (block,) = re.findall(r"```jsonl\n(.*?)```", DOCS, flags=re.DOTALL)
    loaded = load_questions(write(folder, *map(json.loads, block.splitlines())), conversational=True)
    assert [colors(row) for row in loaded] == [[RED], [RED, BLUE], []]
    kinds = [[part["type"] for part in row["prompt"][0]["content"]] for row in loaded]
    assert kinds == [["image", "text"], ["text", "image", "text", "image", "text"], ["text"]]


@pytest.mark.parametrize("form", ["parquet", "a dataset", "a stream"])
def test_pictures_of_datasets(tmp_path, form):
    dataset = Dataset.from_list([{**ASKED, "image": Image.new("RGB", (8, 6), "blue")}, {**ASKED, "image": None}])
    assert isinstance(dataset.features["image"], ImageFeature)
    if form == "parquet":
        dataset.to_parquet(tmp_path / "rows.parquet")
        dataset = tmp_path / "rows.parquet"
    elif form == "a stream":
        dataset = dataset.to_iterable_dataset()
    loaded = load_questions(dataset, conversational=True, streaming=form == "a stream")
    assert isinstance(loaded, IterableDataset if form == "a stream" else Dataset)
    assert [colors(row) for row in loaded] == [[BLUE], []]


def test_pictures_of_a_dataset_stay_the_files_they_are():
    """Neither decoded nor written anew."""
    file = file_of("blue", "JPEG")
    dataset = Dataset.from_list([{**ASKED, "images": [{"bytes": file, "path": None}]}])
    dataset = load_questions(dataset, conversational=True)
    assert dataset.data["images"].to_pylist() == [[{"bytes": file, "path": None}]]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("Is <image> as <image>?", user(text("Is "), IMAGE, text(" as "), IMAGE, text("?"))),
        ("<image><image>", user(IMAGE, IMAGE)),
        ("Which?", user(IMAGE, IMAGE, text("Which?"))),
        (
            [{"role": "system", "content": "Look."}, {"role": "user", "content": "Which?"}],
            [{"role": "system", "content": [text("Look.")]}, *user(IMAGE, IMAGE, text("Which?"))],
        ),
        (user({"type": "image"}, text("or"), {"type": "image"}), user(IMAGE, text("or"), IMAGE)),
    ],
)
def test_places_in_prompts(folder, prompt, expected):
    row = {"prompt": prompt, "answer": "red", "images": ["pics/red.png", "pics/blue.png"]}
    (loaded,) = load_questions(write(folder, row), conversational=True)
    assert loaded["prompt"] == expected


def test_without_pictures_nothing_changes(folder):
    rows = [{**ASKED, "image": None}, {**ASKED, "images": []}, {**ASKED, "question": "What is <image>?"}]
    for streaming in (False, True):
        loaded = list(load_questions(write(folder, *rows), streaming=streaming))
        assert loaded[2]["prompt"] == "Question: What is <image>?\n"
        assert all(row.keys() == {"prompt", "answer", "question", "data_source"} for row in loaded)
    blocks = {"prompt": user(text("What "), text("now?")), "answer": "red"}
    assert load_questions(write(folder, blocks))[0]["prompt"] == "What now?"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"image": "pics/none.png"}, r"rows.jsonl:2: 'image' is 'pics/none.png', and there is no file '.*/pics/none.png'"),
        ({"images": ["pics/red.png", "x" * 999]}, r"'images' is 'x{79}…', and there is no file"),
        ({"image": "pics/half.png"}, r"rows.jsonl:2: 'image' is 'pics/half.png', which cannot be read as a picture \("),
        ({"image": "pics/half.jpg"}, r"'pics/half.jpg', which cannot be read as a picture \(OSError: image file is trunc"),
        ({"image": "rows.jsonl"}, r"'rows.jsonl', which cannot be read as a picture \(UnidentifiedImageError"),
        ({"image": "https://example.org/a.png"}, "'image' is the address 'https://example.org/a.png', and nothing is fetched"),
        ({"image": {"bytes": None, "path": "s3://a/b.png"}}, "is the address 's3://a/b.png', and nothing is fetched"),
        ({"image": 7}, "rows.jsonl:2: 'image' is of type int, and pictures are paths, bytes, or PIL images"),
        ({"image": "pics/red.png", "question": "<image> <image>"}, "has pictures: 1, and places for them in its prompt: 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_refused(folder, row, message, streaming):
    whole = file_of("red", "JPEG", (640, 480))
    (folder / "pics" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "pics" / "half.png").write_bytes(file_of("red")[:50])
    file = write(folder, {**ASKED, "image": "pics/red.png"}, {**ASKED, **row})
    with pytest.raises(DataError, match=message):
        list(load_questions(file, conversational=True, streaming=streaming))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "EPS", "PCX", "PPM"])
@pytest.mark.parametrize("form", ["a path", "bytes"])
def test_formats_of_files(tmp_path, kind, form):
    """The ending of a file says nothing of its format."""
    file = tmp_path / "picture.png"
    file.write_bytes(file_of("red", kind))
    dataset = Dataset.from_list([{**ASKED, "image": str(file) if form == "a path" else file.read_bytes()}])
    if kind in ("EPS", "PCX", "PPM"):
        with pytest.raises(DataError, match=r"cannot be read as a picture \(UnidentifiedImageError"):
            load_questions(dataset, conversational=True)
    else:
        assert len(load_questions(dataset, conversational=True)[0]["images"]) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_of_datasets_are_whole(folder, monkeypatch, streaming):
    """Files of the working directory are not what a dataset of others may name."""
    monkeypatch.chdir(folder)
    for image in ("pics/red.png", {"bytes": None, "path": "pics/red.png"}):
        dataset = Dataset.from_list([{**ASKED, "image": image}])
        dataset = dataset.to_iterable_dataset() if streaming else dataset
        with pytest.raises(
            DataError, match=r"source, row 0 .* 'pics/red.png', and the set is no file .*give whole paths"
        ):
            list(load_questions(dataset, conversational=True, streaming=streaming))


def test_png_files_are_checked_by_their_sums(folder, monkeypatch):
    """Their pixels are computed when they are used."""
    file = file_of("red")
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert len(load_questions(write(folder, {**ASKED, "image": "pics/red.png"}), conversational=True)) == 1
    middle = file.index(b"IDAT") + 8
    for broken in (file[:middle], file[:middle] + b"?" + file[middle + 1 :]):
        (folder / "pics" / "red.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"rows.jsonl:1: 'image' is 'pics/red.png', which cannot be read"):
            load_questions(folder / "rows.jsonl", conversational=True)


def test_pictures_that_are_not_there(folder):
    file = write(folder, {"prompt": user({"type": "image"}, text("?")), "answer": "red"})
    with pytest.raises(DataError, match=r"rows.jsonl:1 has pictures: 0, and places for them in its prompt: 1"):
        load_questions(file, conversational=True)
    with pytest.raises(DataError, match=r"is a conversation of .*'user'.*, which is no text"):
        load_questions(file)


def test_pictures_have_no_place_in_text(folder):
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"rows.jsonl:1 has pictures, and its prompt is text.*conversational=True"):
            list(load_questions(write(folder, {**ASKED, "image": "pics/red.png"}), streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("conversational", [False, True])
def test_columns_say_where_there_are_pictures(folder, streaming, conversational):
    how = {"conversational": conversational, "streaming": streaming, "prompt_template": "{question}"}
    rows = write(folder, {**ASKED, "image": "https://example.org/a.png"}, {**ASKED, "images": 7})
    with pytest.raises(DataError, match=r"rows.jsonl:1: .* give columns=\{'images': None\}\."):
        list(load_questions(rows, **how))
    loaded = list(load_questions(rows, columns={"images": None}, **how))
    prompt = [{"role": "user", "content": "What is this?"}] if conversational else "What is this?"
    assert [row["prompt"] for row in loaded] == [prompt] * 2 and "images" not in loaded[0]
    if conversational:
        rows = write(folder, {"q": "?", "answer": "red", "photo": {"file": "pics/blue.png"}, "image": 7})
        columns = {"images": "photo.file", "question": "q", "answer": "answer"}
        assert [colors(row) for row in load_questions(rows, columns=columns, **how)] == [[BLUE]]


def test_pictures_that_are_not_asked_for_are_not_decoded():
    """Nor is a dataset decoded whose pictures are not read."""
    broken = {**ASKED, "image": {"bytes": b"no picture", "path": None}}
    dataset = Dataset.from_list([broken]).cast_column("image", ImageFeature())
    (row,) = load_questions(dataset, columns={"images": None})
    assert row["answer"] == ["red"] and "images" not in row


def test_what_columns_cannot_say_of_pictures(folder):
    for images in (7, ["a", "b"]):
        with pytest.raises(ValueError, match=r"columns has 'images': .*; it must be the name of a column, or None"):
            load_questions(write(folder, ASKED), columns={"images": images})
    with pytest.raises(ValueError, match=r"columns is \{\}"):
        load_questions(write(folder, ASKED), columns={})


def test_a_text_set_has_no_pictures_in_text(folder):
    with pytest.raises(DataError, match=r"its prompt is text.*columns=\{'images': None\}"):
        load_questions(write(folder, {**ASKED, "image": "pics/red.png"}))


def test_a_stream_tells_by_its_first_row(folder):
    rows = [ASKED, {**ASKED, "image": "pics/red.png"}]
    assert [colors(row) for row in load_questions(write(folder, *rows), conversational=True)] == [[], [RED]]
    with pytest.raises(
        DataError, match=r"rows.jsonl:2 has pictures, and the first row of no set has a column for them"
    ):
        list(load_questions(write(folder, *rows), conversational=True, streaming=True))
