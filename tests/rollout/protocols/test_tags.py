"""Tags in the trainer: prompts without schemas, completions in the form of the prompts, environments."""

import logging
import re

import pytest
from datasets import Dataset
from test_protocol import UNKNOWN_TOOL_TEMPLATE

import tiny
from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.checks.data import prompts_are_conversational
from a2tgpo_trl.rollout import ChatProtocol, TagProtocol
from conftest import search

ANSWER = "<answer>Paris</answer>"
ROLLOUTS = [[ANSWER + "<|im_end|>"], ["<search>Lyon</search>", ANSWER + "<|im_end|>"]] * 2
QUESTION = "Where is Lyon?"
PLAIN_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


class Library:
    """Each rollout has one of its own, which numbers the calls it gets."""

    def reset(self, **kwargs):
        self.calls = 0

    def search(self, query: str) -> str:
        """
        Look something up.

        Args:
            query: What to look for.
        """
        self.calls += 1
        return f"{query} was question {self.calls}"


class Atlas(Library):
    def reset(self, **kwargs):
        self.calls = 10

    async def locate(self, city: str) -> str:
        """
        Locate a city.

        Args:
            city: Which.
        """
        return f"{city} in the atlas"


@pytest.fixture
def played(config, monkeypatch):
    """`played(rollouts, prompt, tokenizer, …)`: prompts and completions as text, what rewards got, the trainer."""

    def play(rollouts, prompt, tokenizer, names=("library",) * 4, **arguments):
        rewarded = []

        def reward(prompts, completions, **kwargs):
            rewarded.extend(completions)
            return [0.0] * len(completions)

        tiny.Script(rollouts).install(monkeypatch)
        inputs = [{"prompt": prompt, "answer": "Paris", "environment": name} for name in names]
        trainer = A2TGPOTrainer(
            model=tiny.model(),
            reward_funcs=reward,
            args=config(advantage_estimator="grpo", tool_protocol="tags"),
            train_dataset=Dataset.from_list(inputs),
            processing_class=tokenizer,
            **arguments,
        )
        batch = trainer._generate_and_score_completions(inputs)
        prompts, completions = (
            [
                tokenizer.decode(row[mask.bool()])
                for row, mask in zip(batch[f"{part}_ids"], batch[f"{part}_mask"], strict=True)
            ]
            for part in ("prompt", "completion")
        )
        return prompts, completions, rewarded, trainer

    return play


OBSERVED = "<search>Lyon</search>\n<result>Lyon is in France.</result>\n" + ANSWER


def test_plain_prompts_give_text(played):
    prompts, completions, rewarded, _ = played(ROLLOUTS, QUESTION, tiny.tokenizer(), tools=[search])
    assert prompts == [QUESTION] * 4
    assert completions == [ANSWER, OBSERVED] * 2
    assert rewarded == [ANSWER, OBSERVED] * 2


@pytest.mark.parametrize("template", ["knows tools", "knows none"])
def test_conversational_prompts_give_messages_and_show_no_schema(played, template):
    tokenizer = tiny.chat_tokenizer() if template == "knows tools" else tiny.tokenizer(PLAIN_TEMPLATE)
    conversation = [{"role": "user", "content": QUESTION}]
    prompts, completions, rewarded, trainer = played(ROLLOUTS, conversation, tokenizer, tools=[search])
    assert prompts == [tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)] * 4
    assert completions == [ANSWER, OBSERVED] * 2
    assert [[message["role"] for message in completion] for completion in rewarded[:2]] == [
        ["assistant"],
        ["assistant", "tool", "assistant"],
    ]
    assert rewarded[1][1] == {"role": "tool", "name": "search", "content": "Lyon is in France."}
    assert rewarded[1][2] == {"role": "assistant", "content": ANSWER}
    assert trainer.tools == [search]
    assert getattr(tokenizer, "response_template", None) is None


@pytest.mark.parametrize("several", [False, True])
def test_environments(played, several):
    rollouts = [
        ["<search>Lyon</search>", "<search>Lyon</search>", ANSWER + "<|im_end|>"],
        ["<locate>Lyon</locate>" if several else "<search>x</search>", ANSWER + "<|im_end|>"],
    ] * 2
    tokenizer, conversation = tiny.chat_tokenizer(), [{"role": "user", "content": QUESTION}]
    prompts, completions, _, _ = played(
        rollouts,
        conversation,
        tokenizer,
        names=["library", "atlas"] * 2,
        environment_factory={"library": Library, "atlas": Atlas} if several else Library,
    )
    assert prompts == [tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)] * 4
    assert completions[0] == completions[2]
    assert "Lyon was question 1</result>" in completions[0] and "Lyon was question 2</result>" in completions[0]
    assert ("Lyon in the atlas" if several else "x was question 1") in completions[1]


def test_an_environment_for_a_tokenizer_without_template(played):
    with pytest.raises(ValueError, match="environment_factory needs a chat template that renders tool calls"):
        played([], QUESTION, tiny.tokenizer(), environment_factory=Library)


# ---- tags that nobody asked for


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    return lambda: [record.message for record in caplog.records if record.levelno >= logging.WARNING]


TOLD = "Look things up with <search>…</search>."


def build(config, prompt, tokenizer, **options):
    arguments = {key: options.pop(key) for key in ("tools", "environment_factory") if key in options}
    return A2TGPOTrainer(
        tiny.model(),
        lambda completions, **kwargs: [0.0] * len(completions),
        config(advantage_estimator="grpo", **options),
        Dataset.from_list([{"prompt": prompt}] * 4),
        processing_class=tokenizer,
        **{"tools": [search], **arguments},
    )


def chat(text, **system):
    return [{"role": "system", "content": system.get("system", "You are a clerk.")}, {"role": "user", "content": text}]


UNKNOWN = tiny.tokenizer(UNKNOWN_TOOL_TEMPLATE)
NOBODY_TELLS = (
    r"tool_protocol='auto' calls tools by text tags, because {}\. .* the first one mentions no tag\. .* called by "
    r"<search>…</search> and answer in <result>…</result>, .* set tool_protocol='tags'\."
)


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (tiny.tokenizer(PLAIN_TEMPLATE), "the chat template does not render tool calls"),
        (UNKNOWN, "TRL does not know the chat template and cannot parse its tool calls"),
    ],
)
def test_a_chat_that_does_not_tell_of_tags_is_refused(config, warnings, tokenizer, reason):
    with pytest.raises(ValueError, match=NOBODY_TELLS.format(reason)):
        build(config, chat(QUESTION), tokenizer)
    for prompt in (chat(f"{QUESTION} {TOLD}"), chat(QUESTION, system=TOLD)):
        assert isinstance(build(config, prompt, tokenizer)._player.protocol, TagProtocol)
    assert isinstance(build(config, chat(QUESTION), tokenizer, tool_protocol="tags")._player.protocol, TagProtocol)
    assert not any("auto" in warning for warning in warnings())


def test_tags_of_their_own_names_are_looked_for(config):
    tokenizer, tags = tiny.tokenizer(PLAIN_TEMPLATE), {"search": "look"}
    with pytest.raises(ValueError, match="called by <look>…</look>"):
        build(config, chat(f"{QUESTION} {TOLD}"), tokenizer, tool_tags=tags)
    build(config, chat(f"{QUESTION} Write <look>…</look>."), tokenizer, tool_tags=tags)


def test_plain_text_that_does_not_tell_of_tags_is_warned_of(config, warnings):
    """A model that is no chat model may have learnt the tags."""
    build(config, f"{QUESTION} {TOLD}", tiny.tokenizer())
    build(config, QUESTION, tiny.tokenizer(), tool_protocol="tags")
    assert not any("auto" in warning for warning in warnings())
    build(config, QUESTION, tiny.tokenizer())
    (warning,) = [warning for warning in warnings() if "auto" in warning]
    assert re.fullmatch(NOBODY_TELLS.format("prompts are plain text, which no chat template renders"), warning)


@pytest.mark.parametrize("column", ["completion", "messages", "chosen", "rejected"])
def test_other_columns_do_not_choose_the_protocol(column):
    """TRL's own question whether a row is conversational asks any of these columns."""
    assert prompts_are_conversational(Dataset.from_list([{"prompt": chat(QUESTION), column: "Paris"}]))
    assert not prompts_are_conversational(Dataset.from_list([{"prompt": QUESTION, column: chat(QUESTION)}]))


class House:
    """An environment whose method is called by a tag."""

    def reset(self, **row) -> None:
        self.place = "hall"

    def walk(self, place: str) -> str:
        """
        Go somewhere.

        Args:
            place: Where to go.
        """
        return f"You are in the {place}."


def test_tags_of_an_environment_whose_template_trl_does_not_know(config, warnings):
    """Such a template renders calls, which is all that an environment needs."""
    options = dict(tools=None, environment_factory=House)
    with pytest.raises(ValueError, match="the first one mentions no tag"):
        build(config, chat(QUESTION), UNKNOWN, **options)
    told = chat("Write <walk>door</walk> to go to the door.")
    for protocol in ("auto", "tags"):
        trainer = build(config, told, UNKNOWN, tool_protocol=protocol, **options)
        assert isinstance(trainer._player.protocol, TagProtocol)
        (rollout,) = trainer.play([{"prompt": told}])
        assert "door</walk>" in trainer._tokenizer.decode(rollout.prompt_ids)


def test_a_template_that_trl_knows_is_used_in_silence(config, warnings):
    assert isinstance(build(config, chat(QUESTION), tiny.chat_tokenizer())._player.protocol, ChatProtocol)
    assert not any("auto" in warning for warning in warnings())


def test_options_of_tags_are_named_where_auto_chose_the_chat_template(config, warnings):
    build(config, chat(QUESTION), tiny.chat_tokenizer(), answer_stop="</x>", result_tag="found")
    (told,) = [warning for warning in warnings() if "tool_protocol='auto' chose" in warning]
    assert told.startswith("answer_stop, result_tag have no effect")
