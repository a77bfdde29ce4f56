"""Question sets as they are distributed, each in its layout, and one's own by a column map."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset

from a2tgpo_trl.data import load_questions
from a2tgpo_trl.data.layouts import LAYOUTS

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
MESSAGE = {"role": "user", "content": "Search, then answer. Question: Where is Lyon?"}
SEARCH_R1 = {
    "id": "train_0",
    "question": "Where is Lyon?",
    "golden_answers": ["France"],
    "data_source": "nq",
    "prompt": [MESSAGE],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["France", "French Republic"]}},
    "extra_info": {"split": "train", "index": 0},
}
FLASHRAG = {"id": "test_0", "question": "Where is Lyon?", "golden_answers": ["France"], "metadata": {"type": "bridge"}}
CONTEXT = [["Lyon", ["Lyon is a city.", "It is in France."]], ["Paris", ["Paris is a city."]]]
HOTPOT = {
    "_id": "5a8b",
    "question": "Where is Lyon?",
    "answer": "France",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Lyon", 1]],
    "context": CONTEXT,
}
ROWS = {
    "Search-R1": (SEARCH_R1, ["France", "French Republic"]),
    "FlashRAG": (FLASHRAG, ["France"]),
    "FlashRAG, one text": ({**FLASHRAG, "golden_answers": "France"}, ["France"]),
    "FlashRAG Bamboogle": ({"id": "test_0", "question": "Q?", "golden_answers": ["a", "b"]}, ["a", "b"]),
    "PopQA": (
        {"id": 1, "subj": "Lyon", "obj": "France", "question": "Q?", "possible_answers": '["France", "République"]'},
        ["France", "République"],
    ),
    "TriviaQA": (
        {
            "question": "Q?",
            "question_id": "tc_1",
            "answer": {"aliases": ["Fr.", "France"], "normalized_aliases": ["fr"], "type": "x", "value": "France"},
        },
        ["France", "Fr."],
    ),
    "MuSiQue": (
        {
            "id": "2hop__1_2",
            "paragraphs": [{"idx": 0, "title": "Lyon", "paragraph_text": "…", "is_supporting": True}],
            "question": "Q?",
            "question_decomposition": [{"id": 1, "question": "Lyon >> country", "answer": "France"}],
            "answer": "France",
            "answer_aliases": ["French Republic", "France"],
            "answerable": True,
        },
        ["France", "French Republic"],
    ),
    "HotpotQA": (HOTPOT, ["France"]),
    "2WikiMultiHopQA": ({**HOTPOT, "evidences": [["Lyon", "country", "France"]]}, ["France"]),
    "GSM8K": ({"question": "Q?", "answer": "He has 2 * 36 = <<2*36=72>>72.\nSo 72.\n#### 72"}, ["72"]),
    "GSM8K, a comma": ({"question": "Q?", "answer": "It is 10% of 10,000.\n#### 1,000"}, ["1,000"]),
    "NQ-open": ({"question": "Q?", "answer": ["France", "", " France ", "Gaul"]}, ["France", "Gaul"]),
}


@pytest.fixture
def load(tmp_path):
    """`load(row, …, **options)`: the loaded rows of a file of lines."""

    def loaded(*rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return load_questions(path, **options).to_list()

    return loaded


@pytest.mark.parametrize("name", ROWS)
def test_each_layout_is_recognised(name, load):
    row, aliases = ROWS[name]
    (loaded,) = load(row)
    assert loaded["answer"] == aliases
    assert loaded["question"] == row["question"]
    assert loaded.keys() == {"prompt", "answer", "question", "data_source"}


def test_a_solution_without_its_final_answer_is_named(load):
    solved = {"question": "Q?", "answer": "Two and two.\n#### 4"}
    for bad in ({**solved, "answer": "Two and two."}, {**solved, "answer": "Two and two.\n#### "}):
        with pytest.raises(ValueError, match=r"rows.jsonl:2 has no answer: \{'answer.####': "):
            load(solved, bad)


@pytest.mark.parametrize("solution", ["x\n#### 72", "#### 72"])
def test_a_worked_solution_is_no_answer(load, solution):
    plain, solved = {"question": "Q?", "answer": "no mark"}, {"question": "Q?", "answer": solution}
    message = r"rows.jsonl:2: 'answer' is a worked solution, .* set columns=\{'question': …, 'answer': 'answer.####'\}"
    for options in ({}, {"columns": {"question": "question", "answer": "answer"}}):
        with pytest.raises(ValueError, match=message):
            load(plain, solved, **options)
    assert load(plain, {**solved, "answer": ["#### 72"]}, {**solved, "answer": "C ####"})[1]["answer"] == ["#### 72"]


def test_worked_solutions_in_other_columns(load):
    row = {"problem": "Q?", "worked": {"solution": "By #### marks.\n#### 4"}}
    (loaded,) = load(row, columns={"question": "problem", "answer": "worked.solution.####"})
    assert loaded["answer"] == ["4"]


@pytest.mark.parametrize("name", ["Search-R1", "GSM8K", "PopQA", "TriviaQA", "MuSiQue", "NQ-open"])
def test_each_layout_is_recognised_in_parquet(name, tmp_path):
    row, aliases = ROWS[name]
    Dataset.from_list([row] * 2).to_parquet(tmp_path / "rows.parquet")
    loaded = load_questions(tmp_path / "rows.parquet", conversational=True)
    assert loaded["answer"][:] == [aliases] * 2
    prompt = row.get("prompt", [{"role": "user", "content": f"Question: {row['question']}\n"}])
    assert loaded["prompt"][:] == [prompt] * 2


def test_each_documented_row_is_in_its_layout(load):
    rows = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", DOCS, flags=re.DOTALL)]
    for name, row, paths in zip(LAYOUTS, rows, LAYOUTS.values(), strict=True):
        assert f"| {name} | {', '.join(f'`{path}`' for path in paths)}" in DOCS
        for option in ({}, {"columns": {"question": "question", "answer": paths}}):
            (loaded,) = load(row, **option)
            assert (loaded["answer"][0], loaded["question"]) == ("France", "Where is Lyon?")


def test_a_text_that_only_looks_like_a_list_is_one_answer(load):
    texts = ["[sic", "[1, 2]", '["a"']
    assert [row["answer"] for row in load(*({"question": "Q?", "answer": text} for text in texts))] == [
        [text] for text in texts
    ]


def test_ready_prompts_are_kept_unless_there_is_a_template(load):
    assert load(SEARCH_R1)[0]["prompt"] == MESSAGE["content"]
    assert load(SEARCH_R1, conversational=True)[0]["prompt"] == [MESSAGE]
    assert load(SEARCH_R1, prompt_template="Q: {question}")[0]["prompt"] == "Q: Where is Lyon?"


def test_a_ready_prompt_needs_no_question(load):
    row = {"prompt": "Where is Lyon?", "answer": "France", "question": None}
    assert load(row)[0] == {"prompt": "Where is Lyon?", "answer": ["France"], "question": None, "data_source": "rows"}
    assert load(row, conversational=True)[0]["prompt"] == [{"role": "user", "content": "Where is Lyon?"}]
    with pytest.raises(
        ValueError, match=r"rows.jsonl:1 has no question in \['question'\]; its columns are \['answer', 'prompt'"
    ):
        load(row, prompt_template="Q: {question}")


def test_a_conversation_is_no_text(load):
    row = {**SEARCH_R1, "prompt": [{"role": "system", "content": "Search."}, MESSAGE]}
    assert load(row, conversational=True)[0]["prompt"] == row["prompt"]
    with pytest.raises(ValueError, match=r"rows.jsonl:1: 'prompt' is a conversation of \['system', 'user'\].*=True"):
        load(row)


def test_fields_that_are_empty_do_not_make_a_message_another(load):
    row = {**SEARCH_R1, "prompt": [{**MESSAGE, "tool_calls": None}]}
    assert load(row, conversational=True)[0]["prompt"] == [MESSAGE]


@pytest.mark.parametrize("prompt", [7, " ", [], [{"role": "user"}], [{**MESSAGE, "tool_calls": ["x"]}]])
def test_a_ready_prompt_of_another_kind_is_an_error(prompt, load):
    with pytest.raises(ValueError, match=r"rows.jsonl:2: 'prompt' must be text, or messages"):
        load(SEARCH_R1, {**SEARCH_R1, "prompt": prompt})


def test_prompts_are_written_by_the_template(load):
    assert load(FLASHRAG)[0]["prompt"] == "Question: Where is Lyon?\n"
    messages = load(FLASHRAG, prompt_template="{x} {question}", conversational=True)[0]["prompt"]
    assert messages == [{"role": "user", "content": "{x} Where is Lyon?"}]
    with pytest.raises(ValueError, match="prompt_template is 'Answer!'"):
        load(FLASHRAG, prompt_template="Answer!")


def test_the_set_is_named_by_the_caller_the_row_or_the_file(load):
    named = [{**FLASHRAG, "source": "popqa"}, {**FLASHRAG, "source": None}, FLASHRAG]
    assert load({**FLASHRAG, "source": {"page": 7}})[0]["data_source"] == "rows"  # no name of a set
    assert [row["data_source"] for row in load(*named)] == ["popqa", "rows", "rows"]
    assert [row["data_source"] for row in load(*named, data_source="mine")] == ["mine"] * 3
    assert load(SEARCH_R1)[0]["data_source"] == "nq"


def test_a_column_map_reads_nested_columns(load):
    row = {"query": {"text": "Q?"}, "a.b": "x", "gold": {"short": ["y"], "long": None}, "set": "faq", "answer": "no"}
    columns = {"question": "query.text", "answer": ["gold.short", "gold.long", "a.b"], "data_source": "set"}
    (loaded,) = load(row, columns=columns)
    assert loaded == {"prompt": "Question: Q?\n", "answer": ["y", "x"], "question": "Q?", "data_source": "faq"}


def test_a_column_map_reads_what_it_names_and_nothing_else(load):
    (loaded,) = load(SEARCH_R1, columns={"question": "question", "answer": "golden_answers"})
    assert loaded["prompt"] == "Question: Where is Lyon?\n"
    assert (loaded["answer"], loaded["data_source"]) == (["France"], "rows")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"question": "q", "answers": "a"},
            r"columns has the keys \['answers'\]; the keys there are: \['question', 'an",
        ),
        ({"question": "q"}, "columns is {.*}; it must name the columns of the answer"),
        ({"answer": "a"}, "columns is {.*}; it must name .* and of the question or a ready prompt"),
        ({"question": "q", "answer": []}, "columns is {.*}; it must name the columns of the answer"),
        ({"question": "q", "answer": [0]}, "columns is {.*}; it must name the columns of the answer"),
        ({"question": None, "answer": "a"}, "columns is {.*}; it must name the columns of the answer"),
        ({"question": "q", "answer": "golden_answers"}, r"rows.jsonl:1 has no question in \['q'\]; its columns are"),
        (
            {"prompt": "p", "answer": "golden_answers"},
            r"rows.jsonl:1 has no question in \['p'\]; .* Name the right ones",
        ),
        ({"question": "question", "answer": "gold"}, r"rows.jsonl:1 has no answer: {'gold': None}; its columns are"),
        ({"question": "metadata", "answer": "golden_answers"}, r"rows.jsonl:1: 'metadata' must be text, got {"),
    ],
)
def test_a_column_map_that_does_not_fit_is_an_error(columns, message, load):
    with pytest.raises(ValueError, match=message):
        load(FLASHRAG, columns=columns)


@pytest.mark.parametrize("row", [{"query": "Q?", "gold": "x"}, {"answer": "x"}, {"question": "Q?"}])
def test_an_unknown_layout_names_the_columns_and_what_to_do(row):
    known = r"none of the layouts \['Search-R1', 'FlashRAG'.*columns={'question'"
    with pytest.raises(ValueError, match=rf"row 0 .* has the columns {re.escape(str(sorted(row)))}, .*{known}"):
        load_questions(Dataset.from_list([row]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"golden_answers": []}, r"has no answer: {'golden_answers': \[\]}; its columns are"),
        ({"golden_answers": ["", " "]}, "has no answer"),
        ({"golden_answers": None}, "has no answer"),
        ({"golden_answers": 1969}, r"'golden_answers' must be text or a list of texts, got 1969 \(int\)"),
        ({"golden_answers": ["a", None]}, r"'golden_answers' must be .*, got \['a', None\] \(list\)"),
        ({"golden_answers": {"x" * 99: 1}}, r"'golden_answers' must be .*, got {'x{77}… \(dict\)"),
        ({"question": " "}, r"has no question in \['question'\]; its columns are"),
        ({"question": ["Q?"]}, r"'question' must be text, got \['Q\?'\] \(list\)"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(row, message, load):
    with pytest.raises(ValueError, match=rf"/rows.jsonl:2:? {message}"):
        load(FLASHRAG, {**FLASHRAG, **row})
