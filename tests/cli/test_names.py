"""What has a name by which something else finds it: tools, methods of environments, tags, reward functions, logged columns."""

from functools import partial

import pandas as pd
import pytest
from datasets import Dataset

import tiny
from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.integrations.names import distinct
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.search import BM25Search
from conftest import GROUP, QUESTION, correct, search

CHAT = [{"prompt": [{"role": "user", "content": QUESTION}], "answer": ["Paris"]}] * 8


class Library:
    def reset(self, **row):
        pass

    def get_reward(self):
        return 1.0

    def search(self, query: str) -> str:
        """
        Look something up.

        Args:
            query: What to look for.
        """
        return f"{query} in a book"


class Archive:
    def reset(self, **row):
        pass

    def search(self, title: str) -> str:
        """
        Look a title up.

        Args:
            title: Which.
        """
        return f"{title} in a box"


@pytest.mark.parametrize("protocol", ["chat", "tags"])
def test_two_tools_of_one_name_are_refused(build, protocol):
    wiki, news = BM25Search(["Lyon is in France."]), BM25Search(["It rains in Lyon."])
    options = dict(processing_class=tiny.chat_tokenizer(), dataset=Dataset.from_list(CHAT), tool_protocol=protocol)
    with pytest.raises(ValueError, match=r"2 tools are called 'search'.*as_tool\('search_news', 'news'\)"):
        build(tools=[wiki.search, news.search], **options)
    trainer = build(tools=[wiki.search, news.as_tool("search_news", "news")], **options)
    assert [tool.__name__ for tool in trainer.tools] == ["search", "search_news"]


@pytest.fixture
def with_environment(config):
    """`with_environment(factory, **arguments)`: a trainer of it."""

    def build(factory, reward=correct, tools=None, **options):
        rows = [{**row, "environment": name} for row in CHAT[:4] for name in ("library", "archive")]
        return A2TGPOTrainer(
            tiny.model(),
            reward,
            config(**options),
            Dataset.from_list(rows),
            processing_class=tiny.chat_tokenizer(),
            tools=tools,
            environment_factory=factory,
        )

    return build


@pytest.mark.parametrize("protocol", ["chat", "tags"])
def test_a_tool_with_the_name_of_an_environments_method_is_refused(with_environment, protocol):
    with pytest.raises(ValueError, match=r"2 tools are called 'search' \(search, Library.search\)"):
        with_environment(Library, tools=[search], tool_protocol=protocol)


def test_environments_may_have_methods_of_one_name(with_environment):
    both = {"library": Library, "archive": Archive}
    assert len(with_environment(both, tool_protocol="chat").tools) == 2
    with_environment({"library": Library, "archive": type("Other", (Library,), {})}, tool_protocol="tags")
    with pytest.raises(ValueError, match="'search' takes 'query' here and 'title' there"):
        with_environment(both, tool_protocol="tags")  # between tags an argument has no name


def length(completions, factor, **kwargs):
    return [factor * len(completion) for completion in completions]


REWARDS = [partial(length, factor=1), partial(length, factor=-1), lambda completions, **_: [0.5] * len(completions)]


def test_reward_functions_of_one_name_are_told_apart(build, rows, tmp_path):
    trainer = build(reward=REWARDS, log_completions=True)
    names = ["length", "length_2", "<lambda>"]
    assert trainer.reward_func_names == names
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/length/mean"] == -log["rewards/length_2/mean"] > 0
    lengths = [len(read.replace("<|im_end|>", "")) for read in map("".join, GROUP[:1])]
    table = pd.read_parquet(tmp_path / "run" / "completions" / "completions_00001.parquet")
    assert table["length"].tolist() == (-table["length_2"]).tolist() and table["length"][0] == lengths[0]
    for record in read_turns(tmp_path / "run").to_pylist():
        rewards = dict(record["rewards"])
        assert list(rewards) == names and rewards["length"] == -rewards["length_2"] > 0
    for rollout in trainer.play(rows[:1], num_generations=4):
        size = len(rollout.completion)
        assert rollout.rewards == {"length": size, "length_2": -size, "<lambda>": 0.5}


def test_an_environments_reward_has_a_name_of_its_own(with_environment):
    def reward(completions, **kwargs):
        return [0.0] * len(completions)

    reward.__name__ = "Library"
    assert with_environment(Library, reward).reward_func_names == ["Library", "Library_2"]


@pytest.mark.parametrize(
    ("names", "taken", "found"),
    [
        (["a", "b"], (), ["a", "b"]),
        (["a", "a", "a"], (), ["a", "a_2", "a_3"]),
        (["a", "a", "a_2"], (), ["a", "a_3", "a_2"]),
        (["a_2", "a", "a"], (), ["a_2", "a", "a_3"]),
        (["prompt", "b"], ("prompt",), ["prompt_2", "b"]),
    ],
)
def test_distinct(names, taken, found):
    assert distinct(names, taken) == found


def test_a_reward_function_is_no_column_of_the_table(build, tmp_path):
    def completion(completions, **kwargs):
        return [1.0, 0.0, 0.0, 1.0]

    trainer = build(reward=completion, log_completions=True)
    trainer.train()
    table = pd.read_parquet(tmp_path / "run" / "completions" / "completions_00001.parquet")
    assert table["completion_2"].tolist() == [1.0, 0.0, 0.0, 1.0] and "Rome" in table["completion"][0]


@pytest.mark.parametrize("column", ["prompt", "advantage", "information_gain", "reward"])
def test_what_a_reward_function_logs_is_no_column_of_the_table(build, column):
    def reward(completions, log_extra, **kwargs):
        log_extra(column, [1] * len(completions))
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=f"log_extra for {column!r}, which is a column of the completions table"):
        build(reward=reward).train()
