"""Typed tables of runs whose model, tools, data and rewards write what they like; test_trackers.py has wandb and trackio."""

import json
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import sympy
from datasets import Dataset

import tiny
from a2tgpo_trl.records.tables import as_json, completions_table
from a2tgpo_trl.report import read_runs
from conftest import GROUP, QUESTION, search

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call><|im_end|>'
ANSWER = "<answer>Paris</answer><|im_end|>"
ROW = {"prompt": [{"role": "user", "content": QUESTION}], "answer": ["Paris"]}


def now() -> str:
    """
    Tell the time.

    Returns:
        The time.
    """
    return "noon"


ROLLOUTS = {
    "a tool without arguments": [CALL % ("now", "{}")] * 4,
    "types that differ": [CALL % ("search", f'{{"query": {query}}}') for query in ("5", '"Lyon"', "[1]", '{"a": {}}')],
    "arguments that are no object": [CALL % ("search", arguments) for arguments in ('"Lyon"', "[1]", "null", "3.5")],
    "half a character": [CALL % ("search", '{"query": "\\ud800"}')] * 4,
    "a number that no file holds": [CALL % ("search", f'{{"query": {10**30}}}'), *[CALL % ("now", "{}")] * 3],
}


def table(folder):
    return pd.read_parquet(folder / "run" / "completions" / "completions_00001.parquet")


def train(build, turns, rows=None, **options):
    chat = dict(processing_class=tiny.chat_tokenizer(), tools=[search, now], reward=lambda prompts, **_: [0, 1, 1, 0])
    dataset = Dataset.from_list(rows or [ROW] * 8)
    trainer = build([[turn, ANSWER] for turn in turns], dataset=dataset, log_completions=True, **{**chat, **options})
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", ROLLOUTS)
def test_calls_of_any_form_are_logged(build, tmp_path, case):
    trainer = train(build, ROLLOUTS[case])
    completions = [json.loads(cell) for cell in table(tmp_path)["completion"]]
    names = [messages[0]["tool_calls"][0]["function"]["name"] for messages in completions]
    assert all(f'"{name}"' in turn for name, turn in zip(names, ROLLOUTS[case], strict=True))
    assert all(messages[-1] == {"role": "assistant", "content": "<answer>Paris</answer>"} for messages in completions)
    assert [json.loads(cell) for cell in table(tmp_path)["prompt"]] == [ROW["prompt"]] * 4
    assert isinstance(trainer._logs["completion"][0], list)  # as TRL keeps it


def test_a_closing_tag_alone_is_logged(build, tmp_path):
    turns = ["Lyon</search>", "<search>Lyon</search>", "</search>", "<search>Lyon</search>"]
    train(build, turns, processing_class=tiny.chat_tokenizer(), tool_protocol="tags", tools=[search])
    calls = [json.loads(cell)[0]["tool_calls"][0]["function"]["arguments"] for cell in table(tmp_path)["completion"]]
    assert calls == [{}, {"query": "Lyon"}] * 2


def test_plain_text_stays_as_it_is(build, tmp_path):
    build(log_completions=True).train()
    assert table(tmp_path)["prompt"].tolist() == [QUESTION] * 4
    assert table(tmp_path)["completion"][0] == GROUP[0][0].removesuffix("<|im_end|>")


def test_what_reward_functions_log_is_numbers_or_text(build, tmp_path):
    columns = {
        "length": [1, 2.5, None, 4],
        "right": [True, False, None, True],
        "words": ["a", None, "\ud800", "d"],
        "parsed": [5, "Lyon", {"a": 1}, [1, "b"]],
        "mixed": [True, 2, 3, 4],
        "large": [10**30, 1, 2, 3],
    }

    def reward(completions, log_extra, **kwargs):
        for name, values in columns.items():
            log_extra(name, values)
        return [0.0, 1.0, 1.0, 0.0]

    build(log_completions=True, reward=reward).train()
    found = {name: table(tmp_path)[name].tolist() for name in columns}
    assert found["length"][::3] == [1, 4] and found["right"] == [True, False, None, True]
    assert found["words"][::2] == ["a", "?"]
    assert found["parsed"] == ["5", "Lyon", '{"a": 1}', '[1, "b"]']
    assert found["mixed"] == ["true", "2", "3", "4"] and found["large"][0] == str(10**30)
    assert [len(turns) for turns in table(tmp_path)["information_gain"]] == [1, 2, 4, 3]


LOOP = []
LOOP.append(LOOP)
CELLS = {
    "sympy": ([sympy.Integer(72), sympy.Rational(1, 2)], ['"72"', '"1/2"']),
    "fractions": ([Fraction(1, 3), 1], ['"1/3"', "1"]),
    "NumPy": ([np.int8(3), np.uint64(5)], [3, 5]),
    "NumPy, booleans": ([np.bool_(True), False], [True, False]),
    "NumPy, in lists": ([[np.int8(3)], [np.float16(0.5), None]], [[3], [0.5, None]]),
    "beyond a double": ([2**53 + 1, 0.5], [str(2**53 + 1), "0.5"]),
    "beyond a double, in lists": ([[2**53 + 1], [0.5]], [f"[{2**53 + 1}]", "[0.5]"]),
    "a list in itself": ([LOOP, None], ["[[[...]]]", None]),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_typed_table_holds_what_is_logged_of_rewards(case, tmp_path):
    cells, expected = CELLS[case]
    extra = completions_table({"prompt": [], "completion": [], "extra": {"cells": cells}})["extra"]
    assert extra == {"cells": expected}
    pd.DataFrame(extra).to_parquet(tmp_path / "table.parquet")  # as TRL writes it


def test_the_report_reads_the_messages(build, tmp_path):
    train(build, ROLLOUTS["types that differ"], turn_records=False)
    (run,) = read_runs([tmp_path / "run"])
    assert run.source == "completions tables"
    turns = next(run.batches()).to_pylist()
    assert [turn["turn"] for turn in turns] == [0, 1] * 4
    assert [turn["calls"][0]["arguments"] for turn in turns[::2]] == [
        f'{{"query": {query}}}' for query in ("5", '"Lyon"', "[1]", '{"a": {}}')
    ]
    assert turns[2]["observation"] == "Lyon is in France." and turns[0]["prompt"] == f"[user] {QUESTION}"


def test_prompts_of_any_form():
    """Chats whose messages hold texts here and blocks there, as datasets with a column of JSON give them."""
    few_shot = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    prompts = [[{"role": "user", "content": "?"}], [few_shot, {"role": "user", "content": [{"type": "text"}]}]]
    logs = completions_table({"prompt": prompts, "completion": ["a", None], "extra": {}})
    assert [json.loads(cell) for cell in logs["prompt"]] == prompts
    assert logs["completion"] == ["a", None]


def test_what_is_no_json_is_text():
    loop = []
    loop.append(loop)
    assert as_json(loop) == "[[...]]"
    assert as_json({1: {2}}) == '{"1": "{2}"}'
