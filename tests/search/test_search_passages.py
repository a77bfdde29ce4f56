import inspect
import json
import re
from pathlib import Path

import pytest

from a2tgpo_trl.search.passages import as_passage, contents_of, read_corpus
from a2tgpo_trl.search.rendering import render
from a2tgpo_trl.search.tool import PassageSearch

LYON = {"title": "Lyon", "text": "Lyon is a city in France."}


@pytest.mark.parametrize(
    ("record", "title", "text"),
    [
        ("A text.", "", "A text."),
        (LYON, "Lyon", "Lyon is a city in France."),
        ({"text": "A text.", "title": None}, "", "A text."),
        ({"contents": '"Lyon"\nA city.\nIn France.'}, "Lyon", "A city.\nIn France."),
        ({"contents": "Lyon\nA city."}, "Lyon", "A city."),
        ({"contents": '""Heroes" (album)"\nBy David Bowie.'}, '"Heroes" (album)', "By David Bowie."),
        ({"contents": "One line only."}, "", "One line only."),
        ({"contents": '"Lyon"\nA city.', "title": "Lugdunum", "text": "A colony."}, "Lugdunum", "A colony."),
    ],
)
def test_layouts_of_a_passage(record, title, text):
    passage = as_passage(record, "it")
    assert (passage["title"], passage["text"]) == (title, text)


@pytest.mark.parametrize("record", [LYON, "A text.", "Two\nlines.", {"title": '"Heroes"', "text": ""}, {"text": ""}])
def test_contents_are_read_as_they_are_written(record):
    passage = as_passage(record, "it")
    again = as_passage({"contents": contents_of(passage)}, "it")
    assert (again["title"], again["text"]) == (passage["title"], passage["text"])


def test_contents_stay_what_they_were():
    assert contents_of(as_passage({"contents": "Lyon\nA city."}, "it")) == "Lyon\nA city."
    assert contents_of(as_passage({"title": "Lyon", "text": "A city.", "contents": None}, "it")) == '"Lyon"\nA city.'
    assert contents_of(LYON) == '"Lyon"\nLyon is a city in France.'


def test_a_corpus_is_read_line_by_line(tmp_path):
    file = tmp_path / "wiki.jsonl"
    file.write_text(json.dumps({"id": "7", **LYON}) + "\n\n" + '{"contents": "Brasília"}', encoding="utf-8")
    lines, passages = zip(*read_corpus(file), strict=True)
    assert [json.loads(line).keys() for line in lines] == [{"id", "title", "text"}, {"contents"}]
    assert [(passage["title"], passage["text"]) for passage in passages] == [tuple(LYON.values()), ("", "Brasília")]
    assert passages[0]["id"] == "7"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "is not JSON"),
        (b'{"text": "\xff"}', "is not JSON in UTF-8"),
        (b'["Lyon"]', "holds no JSON object"),
        (b'{"title": "Lyon"}', r"neither .* it has \['title'\]"),
        (b'{"contents": 7}', "neither"),
        (b'{"text": 7}', 'a "text" of type int'),
        (b'{"text": "A city.", "title": ["Lyon"]}', 'a "title" of type list'),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "wiki.jsonl"
    file.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"wiki\.jsonl, line 3 .*{message}"):
        list(read_corpus(file))


def show(passages, show_titles=True, max_words=None, deduplicate=False):
    return render(passages, show_titles, max_words, deduplicate)


def test_a_text_is_cut_after_words():
    passages = [{"title": "Lyon", "text": "one  two\nthree four"}, {"title": "", "text": "one two three"}]
    assert show(passages, max_words=3) == "(1) Lyon: one  two\nthree …\n(2) one two three"
    assert show(passages, max_words=1) == "(1) Lyon: one …\n(2) one …"
    assert show(passages, max_words=None) == "(1) Lyon: one  two\nthree four\n(2) one two three"


def test_what_would_look_the_same_is_shown_once():
    town = {"title": "Bern", "text": "A town."}
    passages = [{"title": "Lyon", "text": "A town."}, town, {"title": "Genf", "text": "A city."}, town]
    assert show(passages, deduplicate=True) == "(1) Lyon: A town.\n(2) Bern: A town.\n(3) Genf: A city."
    assert show(passages) == "(1) Lyon: A town.\n(2) Bern: A town.\n(3) Genf: A city.\n(4) Bern: A town."
    assert show(passages, show_titles=False, deduplicate=True) == "A town.\nA city."
    overlapping = [{"title": "", "text": "one two three"}, {"title": "", "text": "one two four"}]
    assert show(overlapping, max_words=2, deduplicate=True) == "(1) one two …"


class Fixed(PassageSearch):
    def retrieve(self, queries):
        passage = {"title": "Lyon", "text": "Lyon is a city.", "score": 1.0}
        return [[passage, passage] for _ in queries]


def test_options_reach_what_the_model_reads():
    assert Fixed().search("Lyon") == "(1) Lyon: Lyon is a city."
    assert Fixed(deduplicate=False).search("Lyon") == "(1) Lyon: Lyon is a city.\n(2) Lyon: Lyon is a city."
    assert Fixed(max_words=2).search("Lyon") == "(1) Lyon: Lyon is …"
    assert Fixed(show_titles=False).search("Lyon") == "Lyon is a city."


@pytest.mark.parametrize("options", [{"top_k": 0}, {"max_words": 0}])
def test_options_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Fixed(**options)


def test_the_options_that_are_documented_are_those_that_there_are():
    text = (Path(__file__).parents[2] / "docs/search.md").read_text(encoding="utf-8")
    section = text[text.index("## What the model reads") : text.index("## Several searches")]
    rows = re.findall(r"^\| `(\w+)` \| `?(\w+)`? \|", section, flags=re.MULTILINE)
    parameters = inspect.signature(PassageSearch).parameters.values()
    assert rows == [(parameter.name, str(parameter.default)) for parameter in parameters]
