"""The two example tools, and what the rewards make of `finish`."""

import pytest
from datasets import Dataset
from transformers.utils import get_json_schema

import tiny
from a2tgpo_trl import EndRollout
from a2tgpo_trl.rewards import exact_match_reward, format_reward
from a2tgpo_trl.tools import calculator, finish


@pytest.mark.parametrize(
    "expression, value",
    [
        ("1 + 2 * 3", "7"),
        ("(3 + 4) * -2", "-14"),
        ("7 / 2", "3.5"),
        ("7 // 2 % 2", "1"),
        ("2 ** 10", "1024"),
        (" 1.5e3 ", "1500.0"),
    ],
)
def test_calculator(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression, message",
    [
        ("two", "numbers"),
        ("1 +", "no arithmetic expression"),
        ("", "no arithmetic expression"),
        ("__import__('os')", "numbers"),
        ("9 ** 9 ** 9", "more than 1000 digits"),
        ("(-8) ** 0.5", "no real number"),
        ("True + 1", "numbers"),
        ("1" + "+1" * 100000, "200001 characters; at most 500"),
        ("(" * 250 + "1" + ")" * 249, "no arithmetic expression"),
    ],
)
def test_calculator_refuses(expression, message):
    with pytest.raises(ValueError, match=message):
        calculator(expression)


def test_calculator_reads_the_deepest_expressions():
    assert calculator("-" * 498 + "1") == "1"
    with pytest.raises(ZeroDivisionError):
        calculator("1 / 0")


def test_tools_have_schemas():
    for tool, argument in ((calculator, "expression"), (finish, "answer")):
        assert list(get_json_schema(tool)["function"]["parameters"]["properties"]) == [argument]


def test_finish_ends_the_rollout():
    with pytest.raises(EndRollout):
        finish("Paris")


CALL = '<tool_call>\n{"name": "finish", "arguments": {"answer": "%s"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("turn", "options"),
    [
        (CALL, {"tool_protocol": "chat"}),
        ("<answer>%s</answer>", {"tool_protocol": "tags", "tool_tags": {"finish": "answer"}}),
        ("<finish>%s</finish>", {"tool_protocol": "tags"}),
    ],
    ids=["chat", "tag of answers", "its own tag"],
)
def test_what_is_finished_with_is_the_answer(build, rows, turn, options):
    """Both protocols, through the tool loop."""
    chat = options["tool_protocol"] == "chat"
    asked = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows] if chat else rows
    trainer = build(
        [[turn % answer, "never written"] for answer in ("Paris", "Rome", "Paris", "Lyon")],
        tools=[finish],
        processing_class=tiny.chat_tokenizer(),
        dataset=Dataset.from_list(asked),
        reward=[exact_match_reward, format_reward],
        per_device_eval_batch_size=4,
        **options,
    )
    played = trainer.play(asked[:1], num_generations=4)
    assert [rollout.rewards["exact_match_reward"] for rollout in played] == [1.0, 0.0, 1.0, 0.0]
    assert [rollout.rewards["format_reward"] for rollout in played] == [1.0] * 4
