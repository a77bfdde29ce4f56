"""Several searches as tools of one model: they need names of their own."""

import pytest
from transformers.utils import get_json_schema

from a2tgpo_trl.search import BM25Search

CITIES = BM25Search(["Lyon is a city in France."])
NEWS = BM25Search(["Lyon has elected a mayor."], show_titles=False)


@pytest.fixture
def tools():
    return [CITIES.as_tool("search_cities", "descriptions of cities"), NEWS.as_tool("search_news", "news of 2024")]


def test_a_named_tool_does_what_the_search_does(tools):
    assert [tool("Lyon") for tool in tools] == ["(1) Lyon is a city in France.", "Lyon has elected a mayor."]
    assert [tool.__name__ for tool in tools] == ["search_cities", "search_news"]


def test_the_schema_says_what_is_searched(tools):
    schema = get_json_schema(tools[1])["function"]
    assert schema["name"] == "search_news"
    assert schema["description"] == "Searches news of 2024 and returns the passages that match best."
    assert schema["parameters"] == get_json_schema(NEWS.search)["function"]["parameters"]


def test_a_rollout_calls_both_by_their_tags(tools, score):
    group = [
        ["<search_cities>Lyon</search_cities>", "<search_news>Lyon</search_news>", "<answer>Paris</answer><|im_end|>"]
    ] * 4
    batch, trainer = score(group, tools=tools)
    text = trainer._tokenizer.decode(batch["completion_ids"][0])
    assert "<search_cities>Lyon</search_cities>\n<result>(1) Lyon is a city in France.</result>" in text
    assert "<search_news>Lyon</search_news>\n<result>Lyon has elected a mayor.</result>" in text


@pytest.mark.parametrize("name", ["search news", "", "2024", "search-news"])
def test_a_name_that_no_function_has_is_refused(name):
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        CITIES.as_tool(name, "cities")
