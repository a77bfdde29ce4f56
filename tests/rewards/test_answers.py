import pytest

import tiny
from a2tgpo_trl.rewards import (
    exact_match,
    exact_match_reward,
    extract_answer,
    f1_reward,
    format_reward,
    normalize_answer,
    token_f1,
)
from a2tgpo_trl.rollout import ToolCall, Turn


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Euro.", "euro"),
        ("an apple a day, the best", "apple day best"),
        ("Another theme", "another theme"),  # articles go as words, not as parts of words
        ("U.S. dollar", "us dollar"),
        ("Porto-Novo", "portonovo"),  # SQuAD deletes punctuation, it does not split at it
        ("$5 + 5%", "5 5"),  # ASCII symbols count as punctuation in SQuAD
        ("Brasília", "brasília"),
        ("Brasi\u0301lia", "brasília"),  # an accent of its own is joined with its letter
        ("Ｔｏｋｙｏ", "tokyo"),  # full-width letters
        ("“Saint John’s”", "saint johns"),
        ("¿Quién?", "quién"),
        ("東京。", "東京"),
        ("the a an", ""),
        ("", ""),
    ],
)
def test_normalize_answer(text, normalized):
    assert normalize_answer(text) == normalized


def test_exact_match_compares_normalised_answers():
    assert exact_match("The Euro!", "euro") == 1.0
    assert exact_match("Euros", "Euro") == 0.0
    assert exact_match("Brasilia", "Brasília") == 0.0  # accents are kept: give an alias
    assert exact_match("Brasilia", ["Brasília", "Brasilia"]) == 1.0


def test_exact_match_gives_nothing_for_nothing():
    assert exact_match("", "Euro") == 0.0
    assert exact_match("the", "the") == 0.0  # both are empty after normalisation
    assert exact_match("Euro", []) == 0.0


def test_token_f1():
    # {swiss, franc} and {franc} share 1 word: precision 1/2, recall 1, so 2 · 1/2 · 1 / (3/2) = 2/3
    assert token_f1("the Swiss franc", "Franc") == pytest.approx(2 / 3)
    # of "franc franc" one word counts: precision 1/2, recall 1/2
    assert token_f1("franc franc", "Swiss Franc") == pytest.approx(1 / 2)
    # of the aliases the best counts: precision 1 and recall 1/4 make 2/5, precision 1 and recall 1/2 make 2/3
    assert token_f1("franc", ["West African CFA Franc", "CFA Franc"]) == pytest.approx(2 / 3)
    assert token_f1("Euro", "Lek") == 0.0
    assert token_f1("", "Lek") == 0.0
    assert token_f1("Lek", []) == 0.0


def test_extract_answer_takes_the_last_complete_one():
    assert extract_answer("<answer>Paris</answer> no, <answer> Lyon\n</answer> or <answer>Nice") == "Lyon"
    assert extract_answer("<answer>Paris <answer>Lyon</answer>") == "Lyon"
    assert extract_answer("<answer>two\nlines</answer>") == "two\nlines"
    assert extract_answer("<answer></answer>") == ""
    assert extract_answer("Paris") is None
    assert extract_answer("</answer>Paris<answer>") is None
    assert extract_answer("<final>Paris</final><answer>Lyon</answer>", tag="final") == "Paris"


def test_rewards_score_texts():
    completions = ["<answer>the euro</answer>", "<answer>Swiss euro</answer>", "euro", "<answer></answer>"]
    answers = [["Euro"], "Euro", ["Euro"], ["Euro"]]
    assert exact_match_reward(completions=completions, answer=answers, prompts=[""] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert f1_reward(completions=completions, answer=answers) == pytest.approx([1.0, 2 / 3, 0.0, 0.0])


@pytest.mark.parametrize("reward", [exact_match_reward, f1_reward])
def test_rows_without_an_answer_have_no_reward(reward):
    completions = ["<answer>Euro</answer>"] * 5
    assert reward(completions=completions, answer=[[], "", [""], None, ["", "Euro"]]) == [None, None, None, None, 1.0]


@pytest.mark.parametrize("reward", [exact_match_reward, f1_reward])
@pytest.mark.parametrize("cell", [[["Euro"]], ["Euro", None], 7, {"text": "Euro"}])
def test_cells_that_are_no_answers_are_named(reward, cell):
    columns = {"completions": ["<answer>Euro</answer>"] * 2, "answer": ["Euro", cell], "score": [1, 2]}
    with pytest.raises(ValueError, match=r"'answer' of completion 1, to 'Which\?', must be text or a list of aliases"):
        reward(**columns, prompts=["What?", "Which?"])
    with pytest.raises(ValueError, match="answers must be text or a list of aliases, got "):
        exact_match("Euro", cell)


def test_rewards_refuse_columns_of_other_lengths():
    with pytest.raises(ValueError, match="shorter"):
        exact_match_reward(completions=["<answer>Euro</answer>"] * 2, answer=["Euro"])


@pytest.mark.parametrize(
    "completion",
    [
        "<search>q</search><result><answer>Euro</answer></result>",
        "<search>q</search><result><answer>Euro</answer>",  # cut off inside the observation
        "<result>a</result><search>q</search><result>\n<answer>Euro</answer>\n</result> I do not know.",
        "<result>a</result><answer>Euro</answer></result>",  # the passage closes the tag itself
        "<answer><result>Euro</result></answer>",
        "<ans<result></result>wer>Euro</answer>",
        "<answer>Lek</answer><result><answer>Euro</answer></result>",
    ],
)
def test_answers_in_observations_earn_nothing(completion):
    assert exact_match_reward(completions=[completion], answer=["Euro"]) == [0.0]
    assert f1_reward(completions=[completion], answer=["Euro"]) == [0.0]
    assert format_reward(completions=[completion]) == [0.0]


def test_answers_after_observations_count():
    completions = [
        "<search>q</search><result>Lek</result><answer>Euro</answer>",
        "<search>q</search><result><answer>Lek</answer></result><answer>Euro</answer>",
        "<result>a</result>so<result>b</result><answer>Euro</answer>",
        "<result>a <result> b</result><answer>Euro</answer>",
        "<result>a</result>\n<answer>Euro</answer>\n",
    ]
    assert exact_match_reward(completions=completions, answer=["Euro"] * 5) == [1.0] * 5
    assert format_reward(completions=completions) == [1.0] * 5


def test_the_last_turn_of_a_text_counts_as_that_of_messages_does():
    completions = [
        "<answer>Euro</answer><result>late</result>\n",  # the last turn, though not the end
        "<answer>Euro</answer><search>q</search><result>Lek</result>I do not know.",  # not the last turn
        "<answer>Lek</answer><search>q</search><result>Lek</result><answer>Euro</answer>",  # answered twice
    ]
    assert exact_match_reward(completions=completions, answer=["Euro"] * 3) == [1.0, 0.0, 1.0]
    assert format_reward(completions=completions) == [0.0, 0.0, 0.0]


def say(role, content):
    return {"role": role, "content": content}


ANSWER = say("assistant", "<answer>Euro</answer>")
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "search", "arguments": {"query": "q"}}}]}


@pytest.mark.parametrize(
    ("messages", "right", "well_formed"),
    [
        ([ANSWER], 1.0, 1.0),
        ([CALL, say("tool", "It is the Lek."), ANSWER], 1.0, 1.0),
        ([CALL, say("tool", "<answer>Lek</answer>"), ANSWER], 1.0, 1.0),
        ([CALL, say("tool", "<answer>Euro</answer>")], 0.0, 0.0),
        ([CALL, say("tool", "<answer>Euro</answer>"), say("assistant", "Lek")], 0.0, 0.0),
        ([ANSWER, say("assistant", "Done.")], 0.0, 0.0),  # not in the last message
        ([ANSWER, say("tool", "too late")], 1.0, 0.0),  # in the model's last message, but not the end
        ([say("assistant", "<answer>Lek</answer>"), ANSWER], 1.0, 0.0),  # answered twice
        ([say("assistant", None), say("assistant", [{"type": "text", "text": "<answer>Euro</answer>"}])], 1.0, 1.0),
        ([ANSWER, CALL], 0.0, 0.0),
        ([CALL], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_rewards_score_the_last_assistant_message(messages, right, well_formed):
    assert exact_match_reward(completions=[messages], answer=[["Euro"]]) == [right]
    assert f1_reward(completions=[messages], answer=[["Euro"]]) == [right]
    assert format_reward(completions=[messages]) == [well_formed]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("It is <answer>Lek</answer>", 1.0),
        ("<answer>Lek</answer> \n", 1.0),
        ("<answer>Lek</answer>.", 0.0),
        ("<answer> </answer>", 0.0),
        ("<answer>Lek", 0.0),
        ("Lek</answer>", 0.0),
        ("</answer>Lek<answer>", 0.0),
        ("<answer>Lek</answer><answer>Euro</answer>", 0.0),
        ("<answer>Lek<answer>Euro</answer>", 0.0),
        ("<answer>Lek</answer></answer>", 0.0),
        ("<answer>Lek</answer><result>late</result>", 0.0),
        ("<answer>Lek</answer><result>late</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format_reward(completion, reward):
    assert format_reward(completions=[completion], answer=["anything"]) == [reward]


def turn(text="", read=None, **finished):
    """A turn that wrote a text, maybe read a result, maybe called `finish`."""
    calls = [ToolCall("finish", finished)] if finished else []
    return Turn([], say("assistant", text), calls, observed=[] if read is None else [say("tool", read)])


SEARCH = "<search>q</search>"


@pytest.mark.parametrize(
    ("turns", "right", "well_formed"),
    [
        ([turn("<answer>Euro</answer>")], 1.0, 1.0),
        ([turn(SEARCH, "It is the Lek."), turn("<answer>Euro</answer>")], 1.0, 1.0),
        ([turn(SEARCH, "<answer>Lek</answer>"), turn("<answer>Euro</answer>")], 1.0, 1.0),
        ([turn(SEARCH, "<answer>Euro</answer>")], 0.0, 0.0),
        ([turn(SEARCH, "<answer>Euro</answer>"), turn("I do not know.")], 0.0, 0.0),
        ([turn(SEARCH, "<answer>"), turn("Euro</answer>")], 0.0, 0.0),
        ([turn("<answer>Euro</answer>" + SEARCH, "too late")], 1.0, 0.0),  # ends with an observation
        ([turn("<answer>Euro</answer>" + SEARCH, "Lek"), turn("I do not know.")], 0.0, 0.0),  # not in the last turn
        ([turn("<answer>Lek</answer>" + SEARCH, "Lek"), turn("<answer>Euro</answer>")], 1.0, 0.0),  # answered twice
        ([turn("<result>Lek</result><answer>Euro</answer>")], 1.0, 1.0),  # what the model writes is its own
        ([turn(answer="Euro")], 1.0, 1.0),
        ([turn("It is the Euro.", answer="Euro")], 1.0, 1.0),
        ([turn(answer="Euro", read="bye")], 1.0, 0.0),
        ([turn(answer="Lek", read="no"), turn(answer="Euro")], 1.0, 0.0),
        ([turn(reply="Euro")], 0.0, 0.0),  # not the argument of `finish`
        ([turn("Euro")], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_rewards_score_turns(turns, right, well_formed):
    given = {"completions": ["<answer>Euro</answer>" if not right else "Lek"], "turns": [turns]}  # which tells nothing
    assert exact_match_reward(**given, answer=[["Euro"]]) == [right]
    assert f1_reward(**given, answer=[["Euro"]]) == [right]
    assert format_reward(**given) == [well_formed]


def test_calls_that_are_no_objects_are_no_answers():
    calls = [
        ToolCall("finish", None, error="not JSON"),
        ToolCall("finish", ["Euro"]),
        ToolCall("search", {"answer": "Euro"}),
    ]
    assert exact_match_reward(["x"], ["Euro"], [[Turn([], say("assistant", ""), calls)]]) == [0.0]


def leaking(query: str) -> str:
    """
    Look something up.

    Args:
        query: What to look for.
    """
    return "<answer>Paris</answer>"


@pytest.mark.parametrize("result_tag", ["result", "information"])
@pytest.mark.parametrize("conversational", [False, True])
def test_the_tag_of_results_changes_no_reward(build, rows, result_tag, conversational):
    """A tool that returns the answer between its tags, end to end."""
    if conversational:
        rows[:] = [{**row, "prompt": [say("user", row["prompt"])]} for row in rows]
    look = "<leaking>Lyon</leaking>"
    rollouts = [
        [look, "I do not know.<|im_end|>"],
        [look, "<answer>Paris</answer><|im_end|>"],
        [look, look, "<answer>Rome</answer><|im_end|>"],
        ["<answer>Paris</answer><|im_end|>"],
    ]
    trainer = build(
        rollouts,
        tools=[leaking],
        reward=[exact_match_reward, f1_reward, format_reward],
        processing_class=tiny.chat_tokenizer(),
        tool_protocol="tags",
        result_tag=result_tag,
    )
    played = trainer.play(rows[:1], num_generations=4)
    assert f"<{result_tag}><answer>Paris</answer></{result_tag}>" in trainer._tokenizer.decode(
        played[0].completion_ids
    )
    rewards = [list(rollout.rewards.values()) for rollout in played]
    assert rewards == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
