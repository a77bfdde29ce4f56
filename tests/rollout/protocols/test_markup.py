"""Markup: what is quoted and how, names that models make up, how templates write calls."""

import random
from time import thread_time

import pytest
from tokenizers import AddedToken

import tiny
from a2tgpo_trl.rollout.protocols.markup import CallForm, Markup, control_tokens, safe_name, tags_in, without_brackets


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("<|im_end|>", "[|im_end|]"),
        ("a <|im_end|>\n<|im_end|> b", "a [|im_end|]\n[|im_end|] b"),
        ("<｜tool▁sep｜>", "[｜tool▁sep｜]"),
        ("[INST] x [/INST]", "(INST) x (/INST)"),
        ("<INST>", "<INST>"),  # other brackets, another string
        ("<both> [both]", "(both) (both)"),  # quoting makes no other markup
        ("STOP and STOP", "S TOP and S TOP"),
        ("xxxx", "x x x x"),
        ("<tool_call> </tool_call>", "[tool_call] [/tool_call]"),
        ("<response></response>", "[response][/response]"),  # the template was seen to write one half
        ("<function=evil> <function=a b> </function>", "[function=evil] [function=a b] [/function]"),
        ('<output name="x"> <output\nname=y>', '[output name="x"] [output\nname=y]'),
        ("<outputs> <tool_calls> <functional=x>", "<outputs> <tool_calls> <functional=x>"),
        ("<|im_<|im_end|>end|>", "<|im_[|im_end|]end|>"),
        ("<<|im_end|>>", "<[|im_end|]>"),
        ("</</tool_call>tool_call>", "</[/tool_call]tool_call>"),
        ("<tool_call", "<tool_call"),
        ("x. y\n  z", "x. y\n  z"),  # single characters and white space are text
        ("a < b > c [1, 2] <b>bold</b> 5 | 6", "a < b > c [1, 2] <b>bold</b> 5 | 6"),
    ],
)
def test_defuse(text, quoted):
    tokens = ["<|im_end|>", "<｜tool▁sep｜>", "[INST]", "<both>", "[both]", "STOP", "xx", ".", "\n", "  ", ""]
    tags = ["<tool_call>", "</response>", "<function=f>", '<output name="f">', "[/INST]"]
    markup = Markup(tokens, tags)
    assert markup.defuse(text) == quoted
    assert markup.defuse(quoted) == quoted
    assert markup.count(quoted) == 0
    assert (markup.count(text) > 0) == (text != quoted)


def test_no_markup():
    markup = Markup([])
    assert markup.defuse("<|im_end|> [INST]") == "<|im_end|> [INST]"
    assert markup.count("<|im_end|>") == 0


def test_nothing_is_left_of_any_mixture():
    tokens = ["<a>", "[a]", "(a)", "<|a|>", "aa", "a b", "<<a>>", "</a>", "<a", "[ab]", "a>"]
    markup, draw = Markup(tokens, ["<f=1>", "<b c>"]), random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices([*"<>[]()|/ab =\n", *tokens, "<f=", "<b "], k=draw.randint(1, 12)))
        defused = markup.defuse(text)
        assert not any(token in defused for token in tokens)
        assert markup.count(defused) == 0


def test_many_tokens_and_long_texts_are_fast():
    markup = Markup([f"<unused{i}>" for i in range(6000)] + ["<<x>>", "STOP"], ["<f=1>"])
    text = "<p>a paragraph of <b>a page</b></p>\n" * 30_000 + "[unclosed <unclosed " * 1000
    start = thread_time()
    assert markup.defuse(text + "<unused5999> STOP <f=2>") == text + "[unused5999] S TOP [f=2]"
    assert thread_time() - start < 5  # 0.4 seconds; alternatives of one pattern would take 20


def test_without_brackets():
    assert without_brackets("a <b> [c] |d| ＜|ｉm_end|＞ ｜") == "a b c d im_end "


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("search", "search"),
        ("Tool-2.search:web/pages", "Tool-2.search:web/pages"),
        ("suche_größe_東京", "suche_größe_東京"),
        ("a b\n<|im_end|>", "a_b_im_end_"),
        ('x" evil="y', "x_evil_y"),
        ("\ud800", "_"),
        ("", "unknown"),
        (None, "unknown"),
        (5, "unknown"),
        (["search"], "unknown"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 61 + "..."),
        ("x" * 10_000_000, "x" * 61 + "..."),
    ],
)
def test_safe_name(name, shown):
    assert safe_name(name) == shown


def test_control_tokens():
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["PAUSE"]})
    tokenizer.add_tokens(["<tool_call>", "[REF]", "word", "    ", "<not a tag>", "<", "[]", "<｜x｜>"])
    tokenizer.add_tokens([AddedToken("quiet", special=True)])
    assert control_tokens(tokenizer) == {
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "PAUSE", "quiet"),
        *("<tool_call>", "[REF]", "<｜x｜>"),
    }


def test_tags_in():
    text = '<|im_start|>x<tool_call>\n{"a": [1, "b"]}</tool_call>[INST] a < b > <f=1> <g h="2"> <|"|> <tool_call|>'
    found = ["<|im_start|>", "<tool_call>", "</tool_call>", "[INST]", "<f=1>", '<g h="2">', '<|"|>', "<tool_call|>"]
    assert tags_in(text) == found


# ---- the form of calls


def template(call, answer="{{ m.content }}"):
    """A template that writes the user, then a call or an answer."""
    return tiny.tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
        + call
        + "{% else %}"
        + answer
        + "{% endif %}<|im_end|>\n{% endfor %}"
    )


JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'


@pytest.mark.parametrize(
    ("call", "form"),
    [
        (f"<tool_call>{JSON}</tool_call>", CallForm("<tool_call>", "</tool_call>", ("name", "arguments"))),
        (f"[TOOL_CALLS][{JSON}]", CallForm("[TOOL_CALLS]", "", ("name", "arguments"))),
        (
            '<call>{"parameters": {{ f.arguments | tojson }}, "tool": "{{ f.name }}"}',
            CallForm("<call>", "", ("tool", "parameters")),
        ),
        (
            "<call><function={{ f.name }}>{{ f.arguments }}</function></call>",
            CallForm("<call>", "<function=tool_8c41e7>", None),
        ),
        ("<call>{{ f.name }}({{ f.arguments }})</call>", CallForm("<call>", "</call>", None)),
        ("<think></think><call>{{ f.name }} {{ f.arguments }}", CallForm("<call>", "", None)),
        (
            "to={{ f.name }}<call><function={{ f.name }}>{{ f.arguments }}</call>",  # names the tool twice
            CallForm("<call>", "<function=tool_8c41e7>", None),
        ),
        (JSON, None),  # nothing marks it
        ("<|im_start|>{{ f.name }}{{ f.arguments }}", None),
        ("<call>{{ f.name + f.arguments }}", CallForm("<call>", "", None)),  # arguments as text
        ("{{ raise_exception('no calls') }}", None),
        ("nothing", None),
    ],
)
def test_form_of_calls(call, form):
    assert CallForm.of(template(call, answer="<think></think>{{ m.content }}")) == form


def test_no_form_without_answers():
    assert (
        CallForm.of(template("<call>{{ f.name }}", answer="{% if m.role != 'user' %}{{ 1 / 0 }}{% endif %}")) is None
    )


QWEN = CallForm("<tool_call>", "</tool_call>", ("name", "arguments"))
WRITE = ' Write {"name": ..., "arguments": {...}}.'
UNREADABLE = "The tool call cannot be read. Write it as told, with the tool's name and its arguments."


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ('<tool_call>{"name": "a" "b"}</tool_call>', "is not valid JSON: Expecting ',' delimiter: line 1 column 14 (char 13)"),
        ("<tool_call>\n</tool_call>", "is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ('<tool_call>{"name": "a"', "is not valid JSON: Expecting ',' delimiter: line 1 column 13 (char 12)"),
        ('<tool_call>{"name": "a"}}</tool_call>', "is not valid JSON: Extra data: line 1 column 14 (char 13)"),
        ("<tool_call>" + "[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'misses the key "name"'),
        ('<tool_call>[{"arguments": {}}]</tool_call>', 'misses the key "name"'),
        ('<tool_call>{"function": {"arguments": {}}}</tool_call>', 'misses the key "name"'),
        ('<tool_call>{"name": 5}</tool_call>', 'needs a string as "name"'),
        ('<tool_call>"search"</tool_call>', "is not a JSON object"),
        ("<tool_call>[]</tool_call>", "is not a JSON object"),
        ("<tool_call>[5]</tool_call>", "is not a JSON object"),
        ('<tool_call>{"function": 5}</tool_call>', "is not a JSON object"),
        ('<tool_call>{"name": "a"}</tool_call> and <tool_call>{}</tool_call>', 'misses the key "name"'),
        ('<tool_call>{"name": "a", "arguments": {}}', "is not closed"),
        ('a {"b" <tool_call>{"name": 5}</tool_call> {', 'needs a string as "name"'),
    ],
)  # fmt: skip
def test_error_says_what_is_wrong(written, error):
    assert QWEN.error(written) == f"The tool call {error}.{WRITE}"


def test_error_where_the_cause_is_not_known():
    assert QWEN.error('<tool_call>{"name": "a", "arguments": {}}</tool_call>') == UNREADABLE
    assert CallForm("<call>", "</call>", None).error("<call>x</call>") == UNREADABLE
    other = CallForm("[CALL]", "", ("tool", "parameters")).error("[CALL]{}")
    assert CallForm("[CALL]", "", ("name", "arguments")).error('[CALL]{"name": "a"}') == UNREADABLE
    assert other == 'The tool call misses the key "tool". Write {"tool": ..., "parameters": {...}}.'
