"""Where question sets come from: files, folders, datasets; all at once or streaming."""

import json
import random
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, IterableDataset

from a2tgpo_trl.data import DataError, load_questions

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = [{"id": i, "question": f"Where is {i}?", "golden_answers": [f"a{i}", f"b{i}"]} for i in range(5)]


def lines(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def array(path, rows=ROWS):
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def parquet(path, rows=ROWS):
    Dataset.from_list(rows).to_parquet(path)
    return path


def answers(source, *args, **options):
    return [row["answer"][0] for row in load_questions(source, *args, **options)]


@pytest.mark.parametrize(
    ("write", "name"),
    [(lines, "q.jsonl"), (lines, "q.json"), (array, "q.json"), (array, "q.jsonl"), (parquet, "q.parquet")],
)
def test_streaming_gives_the_rows_of_each_format(write, name, tmp_path):
    path = write(tmp_path / name)
    whole = load_questions(path)
    stream = load_questions(str(path), streaming=True)
    assert isinstance(whole, Dataset) and isinstance(stream, IterableDataset)
    assert whole.features == stream.features
    assert whole.to_list() == list(stream) == list(stream)  # as often as one likes
    assert [row["answer"] for row in whole] == [row["golden_answers"] for row in ROWS]
    assert set(whole["data_source"]) == {"q"}


def test_blank_lines_are_left_out_and_counted(tmp_path):
    path = lines(tmp_path / "q.jsonl", [ROWS[0], "", "  ", *ROWS[1:3], {**ROWS[3], "golden_answers": []}])
    with pytest.raises(ValueError, match=r"q\.jsonl:6 has no answer"):
        load_questions(path)
    assert [row["answer"][0] for row in load_questions(path, streaming=True).take(2)] == ["a0", "a1"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"question": "Why?" "golden_answers": []}', r"q\.jsonl:3 is not a line of JSON \(Expecting ',' delimiter"),
        ("[1, 2]", r"q\.jsonl:3 is \[1, 2\] \(list\); a row must be an object"),
        ('"text"', r"q\.jsonl:3 is 'text' \(str\)"),
        ({"question": "Why?"}, r"q\.jsonl:3 has no answer: {'golden_answers': None}; its columns are \['question'\]"),
    ],
)
def test_a_bad_line_is_named(bad, message, streaming, tmp_path):
    path = lines(tmp_path / "q.jsonl", [*ROWS[:2], bad, ROWS[3]])
    with pytest.raises(ValueError, match=message):
        list(load_questions(path, streaming=streaming))


def test_a_stream_fails_when_it_reaches_the_bad_line(tmp_path):
    stream = iter(load_questions(lines(tmp_path / "q.jsonl", [ROWS[0], "{broken"]), streaming=True))
    assert next(stream)["answer"] == ["a0", "b0"]
    with pytest.raises(ValueError, match=r"q\.jsonl:2 is not"):
        next(stream)


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_may_begin_with_a_byte_order_mark(indent, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(ROWS, indent=indent), encoding="utf-8-sig")
    assert answers(tmp_path / "q.json") == answers(array(tmp_path / "same.json"))


def test_a_lone_surrogate_is_named(tmp_path):
    row = {"question": "q \ud83d", "answer": "a"}  # JavaScript cuts texts so
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match=r"q\.jsonl:2 has .*a lone surrogate"):
        load_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("columns", [["q", "a"], "q"])
def test_columns_that_are_no_mapping_are_an_error(columns, tmp_path):
    with pytest.raises(ValueError, match=r"columns is .*give a mapping"):
        load_questions(lines(tmp_path / "q.jsonl"), columns=columns)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl:1 is not a line of JSON"):
        load_questions(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("write", "name"), [(array, "q.json"), (parquet, "q.parquet")])
def test_a_bad_row_is_named_where_there_are_no_lines(write, name, streaming, tmp_path):
    path = write(tmp_path / name, [*ROWS[:2], {**ROWS[2], "golden_answers": []}])
    with pytest.raises(ValueError, match=rf"{name}, row 2 \(from 0\) has no answer"):
        list(load_questions(path, streaming=streaming))


def test_broken_files_are_named(tmp_path):
    (tmp_path / "q.json").write_text('[{"question": 1},\n{"question" 2}]')
    with pytest.raises(ValueError, match=r"q\.json:2 is not JSON"):
        load_questions(tmp_path / "q.json")
    (tmp_path / "q.parquet").write_text("no parquet at all")
    with pytest.raises(ValueError, match=r"q\.parquet is no Parquet file"):
        load_questions(tmp_path / "q.parquet")
    (tmp_path / "empty.jsonl").touch()
    for columns in (None, {"question": "question", "answer": "answer"}):
        with pytest.raises(ValueError, match=r"empty\.jsonl holds no rows"):
            load_questions(tmp_path / "empty.jsonl", columns=columns)


def test_files_of_several_layouts_are_read_one_after_the_other(tmp_path):
    first = lines(tmp_path / "b.jsonl", ROWS[:2])
    second = parquet(tmp_path / "a.parquet", [{"question": "Q?", "answer": "x"}])
    assert answers([first, str(second)]) == ["a0", "a1", "x"]
    assert answers(str(tmp_path / "*.*")) == ["x", "a0", "a1"]  # in alphabetical order
    loaded = load_questions([first, second], streaming=True)
    assert [row["data_source"] for row in loaded] == ["b", "b", "a"]
    assert loaded.num_shards == 2


def test_the_split_chooses_among_the_files_of_a_folder(tmp_path, monkeypatch):
    for number, name in enumerate(["dev.jsonl", "hotpot_train_v1.1.json", "train-00001.jsonl", "retrain.jsonl"]):
        lines(tmp_path / "set" / name, [ROWS[number]])
    (tmp_path / "set" / "train.txt").touch()
    assert answers(tmp_path / "set") == ["a1", "a2"]
    assert answers(str(tmp_path / "set"), "dev") == ["a0"]
    monkeypatch.chdir(tmp_path)
    assert answers("set", "dev") == ["a0"]  # a folder before a dataset on the Hub
    with pytest.raises(ValueError, match=r"no file is named after split='test'; it has \['dev.jsonl', 'hotpot"):
        load_questions(tmp_path / "set", split="test")


def test_sources_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "q.csv").touch()
    with pytest.raises(
        ValueError,
        match=r"q\.csv'; files end in \.jsonl, \.json, \.parquet\. Convert it, or in Python read it with datasets",
    ):
        load_questions(tmp_path / "q.csv")
    for missing in (tmp_path / "q.jsonl", "q.jsonl", "no such/*.json"):
        with pytest.raises(FileNotFoundError, match=r"source is .* there is no such file or folder, nor one that"):
            load_questions(missing)
    with pytest.raises(ValueError, match="source is an empty list"):
        load_questions([])


def test_a_changed_file_is_read_anew(tmp_path):
    path = lines(tmp_path / "q.jsonl")
    for streaming in (False, True):
        lines(path, ROWS[:1])
        assert answers(path, streaming=streaming) == ["a0"]
        lines(path, ROWS[1:2])
        assert answers(path, streaming=streaming) == ["a1"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_loaded_dataset_is_a_source(streaming):
    rows = Dataset.from_list([{"query": "Q?", "gold": {"text": "x"}}, {"query": "R?", "gold": {"text": None}}])
    columns = {"question": "query", "answer": "gold.text"}
    for source in (rows, rows.to_iterable_dataset()):
        loaded = load_questions(source.take(1), columns=columns, streaming=streaming)
        assert isinstance(loaded, IterableDataset) == streaming
        assert list(loaded) == [{"prompt": "Question: Q?\n", "answer": ["x"], "question": "Q?", "data_source": None}]
        with pytest.raises(ValueError, match=r"source, row 1 \(from 0\) has no answer"):
            list(load_questions(source, columns=columns, streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_the_hub_is_loaded_by_name(streaming, tmp_path, monkeypatch):
    path, asked, load_dataset = str(lines(tmp_path / "q.jsonl")), [], datasets.load_dataset

    def from_disk(name, subset, **options):
        asked.append((name, subset, options))
        return load_dataset("json", data_files={options["split"]: path}, cache_dir=tmp_path / "cache", **options)

    monkeypatch.setattr(datasets, "load_dataset", from_disk)
    loaded = load_questions("RUC-NLPIR/FlashRAG_datasets", "test", subset="nq", streaming=streaming)
    assert asked == [("RUC-NLPIR/FlashRAG_datasets", "nq", {"split": "test", "streaming": streaming})]
    assert [row["answer"][0] for row in loaded] == ["a0", "a1", "a2", "a3", "a4"]
    assert next(iter(loaded))["data_source"] == "RUC-NLPIR/FlashRAG_datasets/nq"
    assert next(iter(load_questions("org/nq", streaming=streaming)))["data_source"] == "org/nq"
    lines(tmp_path / "q.jsonl", [ROWS[0], {**ROWS[1], "golden_answers": []}])
    with pytest.raises(ValueError, match=r"org/nq, row 1 \(from 0\) has no answer"):
        list(load_questions("org/nq", streaming=streaming))


def test_a_name_that_is_nothing_says_so(monkeypatch):
    def not_there(*args, **options):
        raise FileNotFoundError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", not_there)
    with pytest.raises(FileNotFoundError, match=r"source is 'org/nq': .*no such file or folder, and as a dataset of"):
        load_questions("org/nq")


def test_a_dataset_of_several_splits_is_an_error():
    splits = datasets.DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS))
    with pytest.raises(ValueError, match=r"source is a DatasetDict of \['train', 'test'\]; give one"):
        load_questions(splits)
    assert answers(splits["test"].with_format("numpy")) == ["a0", "a1", "a2", "a3", "a4"]


def test_a_subset_of_files_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="subset is 'nq', and source is no name"):
        load_questions(lines(tmp_path / "q.jsonl"), subset="nq")


def test_the_documented_errors_are_those_that_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, broken = ROWS[:2], '{"question": "Why?" "golden_answers": []}'
    no_question = {"id": 2, "golden_answers": ["a"]}
    third = [{**ROWS[2], "golden_answers": []}, {**ROWS[2], "golden_answers": 1969}, no_question, broken]
    files = [lines(Path("sets") / f"{number}" / "nq.jsonl", [*good, row]) for number, row in enumerate(third)]
    plain = [{"question": "Why?", "answer": answer} for answer in ("a", "b", "c", None)]
    files += [
        parquet(Path("sets/train.parquet"), plain),
        lines(Path("sets/faq.jsonl"), [{"query": "Q?", "gold": "x"}]),
    ]
    documented = DOCS[DOCS.index("## Errors") :].split("```")[1].strip().splitlines()
    for file, message in zip(files, documented, strict=True):
        with pytest.raises(ValueError) as error:
            load_questions(file)
        assert re.sub(r"^sets/\d/", "sets/", str(error.value)) == message


def test_the_documented_scripts_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines(Path("faq.jsonl"), [{"query": {"text": "Q?"}, "gold": "x", "also_accepted": ["y"]}])
    lines(Path("questions.jsonl"), [{"question": "Q?", "answer": "x", "country": country} for country in "AABBCCDDEE"])
    _, column_map, environment, split = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    assert eval(column_map, {"load_questions": load_questions})["answer"][:] == [["x", "y"]]
    namespace = {"random": random}
    exec(environment, namespace)
    arithmetic = namespace["Arithmetic"]()
    a, b = map(int, re.findall(r"\d+", arithmetic.reset()))
    assert arithmetic.answer == str(a + b)
    exec(split, namespace)
    assert (len(namespace["train"]), len(namespace["held_out"])) == (8, 2)
