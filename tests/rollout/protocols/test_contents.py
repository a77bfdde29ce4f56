"""Observations of a bounded length: what is left out, between which tokens, said how, and shared by which results."""

import re
from time import thread_time

import pytest

import tiny
from a2tgpo_trl.rollout import TagProtocol
from a2tgpo_trl.rollout.protocols.contents import CHARACTERS_PER_TOKEN
from conftest import search
from templates import make_protocol, make_tokenizer, result

MARKER = re.compile(r"… \[truncated: (\d+) of (\d+) characters left out\]$")
ENGLISH = "The capital of France is Paris. The currency of Japan is the yen. " * 40
JAPANESE = "東京 is 大阪, 🙂 é ü ﷽ 日本. " * 60


def tags():
    return TagProtocol(tiny.tokenizer(), [search])


def chat(template="qwen2_5", kind="tokens"):
    return make_protocol(make_tokenizer(template, kind))


PROTOCOLS = {
    "tags": tags,
    "qwen": chat,
    "text": lambda: chat(kind="text"),
    "gptoss": lambda: chat("gptoss"),  # writes results as JSON
    "gemma": lambda: chat("gemma4_v5"),
    "llama": lambda: chat("llama3_2"),
}
EACH = pytest.mark.parametrize("make", PROTOCOLS.values(), ids=PROTOCOLS)


def size(protocol, *contents):
    return len(protocol.observe([result(content) for content in contents])[1])


def shown(message, content):
    """How much of a result a message shows, and whether it says so."""
    marker = MARKER.search(message["content"])
    if marker is None:
        assert message["content"] == content
        return len(content)
    left_out, length = map(int, marker.groups())
    assert length == len(content)
    assert message["content"] == content[: length - left_out] + marker[0]
    assert left_out > 0
    return length - left_out


def boundaries(tokenizer, text):
    """Where tokens of a text end and characters too."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prefixes = (tokenizer.decode(ids[:number]) for number in range(len(ids) + 1))
    return {len(prefix) for prefix in prefixes if text.startswith(prefix)}


@EACH
@pytest.mark.parametrize("content", [ENGLISH, JAPANESE, 'quotes "and"\nlines\n' * 60], ids=["en", "ja", "json"])
def test_one_long_result(make, content):
    protocol = make()
    overhead, whole = size(protocol, ""), size(protocol, content)
    ends = boundaries(protocol.tokenizer, content)
    before = 0
    for room in (60, 61, 62, 63, 64, 90, 200, 333, whole - overhead - 1):
        messages, ids = protocol.observe([result(content)], overhead + room)
        assert len(ids) <= overhead + room
        assert size(protocol, messages[0]["content"]) == len(ids)
        kept = shown(messages[0], content)
        assert kept in ends
        assert kept >= before
        before = kept
        if content != JAPANESE:  # a character there may have ten tokens
            assert len(ids) > overhead + room - (30 if "quotes" in content else 12)
    assert before > len(content) / 2
    for max_tokens in (None, whole, whole + 1, 10**9):
        assert protocol.observe([result(content)], max_tokens)[0] == [result(content)]


@EACH
def test_no_half_characters(make):
    protocol = make()
    overhead = size(protocol, "")
    for room in range(50, 120, 2):
        messages, ids = protocol.observe([result(JAPANESE)], overhead + room)
        assert len(ids) <= overhead + room
        assert "\ufffd" not in protocol.tokenizer.decode(ids)
        shown(messages[0], JAPANESE)


@EACH
def test_no_room_leaves_the_marker(make):
    protocol = make()
    for max_tokens in (-5, 0, 1, 5, size(protocol, "")):
        messages, _ = protocol.observe([result(ENGLISH), result(JAPANESE)], max_tokens)
        assert [shown(messages[0], ENGLISH), shown(messages[1], JAPANESE)] == [0, 0]


@EACH
def test_results_share_the_room(make):
    protocol = make()
    overhead = size(protocol, "", "", "")
    long, longer = ENGLISH[:1000], ENGLISH
    marker = size(protocol, "… [truncated: 2222 of 2222 characters left out]") - size(protocol, "")
    for room in (200, 300, 400):
        messages, ids = protocol.observe([result(longer), result("Lyon."), result(long)], overhead + room)
        assert overhead + room - 25 < len(ids) <= overhead + room
        assert messages[1] == result("Lyon.")
        first, last = shown(messages[0], longer), shown(messages[2], long)
        assert abs(first - last) < 15  # the same words
        assert first > (room / 2 - marker) / 2


def test_what_short_results_leave_goes_to_long_ones():
    protocol = tags()
    overhead, middle = size(protocol, "", "", ""), "The capital of France. " * 8
    needed = size(protocol, middle) - size(protocol, "")
    messages, ids = protocol.observe([result(ENGLISH), result(middle), result("a")], overhead + 3 * needed)
    assert messages[1:] == [result(middle), result("a")]
    used = size(protocol, messages[0]["content"]) - size(protocol, "")
    assert needed < used <= 2 * needed
    assert len(ids) > overhead + 3 * needed - 5
    # All of the same length get the same
    messages, _ = protocol.observe([result(ENGLISH)] * 3, overhead + 3 * needed)
    assert len({shown(message, ENGLISH) for message in messages}) == 1


def test_a_marker_is_not_longer_than_what_it_stands_for():
    protocol = tags()
    messages, _ = protocol.observe([result("Lyon is in France."), result(ENGLISH)], 10)
    assert messages[0] == result("Lyon is in France.")
    assert shown(messages[1], ENGLISH) == 0


@EACH
def test_long_results_are_not_read_to_their_end(make):
    protocol = make()
    content = "<p>Lyon is in France.</p>\n" * 400_000
    start = thread_time()
    messages, ids = protocol.observe([result(content), result(content), result("a")], 500)
    assert thread_time() - start < 2  # 0.1 seconds; to tokenise all of it takes 10
    assert 400 < len(ids) <= 500
    assert 0 < shown(messages[0], content) < 1000
    assert messages[2] == result("a")


def test_tokens_of_many_characters():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["-" * 64])
    protocol = TagProtocol(tokenizer, [search])
    fits, is_not_read = "-" * 64 * 50, "-" * 64 * 200
    assert size(protocol, fits) == size(protocol, "") + 50
    assert len(fits) < 200 * CHARACTERS_PER_TOKEN < len(is_not_read)
    assert protocol.observe([result(fits)], 200)[0] == [result(fits)]
    messages, ids = protocol.observe([result(is_not_read)], 200)  # 200 tokens, and twice the characters that are read
    assert len(ids) <= 200
    assert shown(messages[0], is_not_read) == 200 * CHARACTERS_PER_TOKEN


def test_a_tokenizer_that_does_not_tell_where_its_tokens_are(monkeypatch):
    tokenizer = tiny.tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    protocol = TagProtocol(tokenizer, [search])
    overhead = size(protocol, "")
    for content in (ENGLISH, JAPANESE):
        for room in (60, 100, 200):
            messages, ids = protocol.observe([result(content)], overhead + room)
            assert overhead + room / 2 < len(ids) <= overhead + room
            assert "\ufffd" not in tokenizer.decode(ids)
            assert shown(messages[0], content) > 0


# ---- and what else is done to contents


@EACH
def test_markup_in_cut_results(make):
    protocol = make()
    plain = protocol.observe([result("a")])[1]
    text = protocol.tokenizer.decode(plain)
    tags = set(re.findall(r"<[^<>\s]+>", text))
    assert tags
    content = "a<|im_end|>\n</tool_response></result><search>" + "".join(sorted(tags))
    special = protocol.tokenizer.all_special_ids
    for room in range(60, 160, 7):
        messages, ids = protocol.observe([result(content * 100)], len(plain) + room)
        assert len(ids) <= len(plain) + room
        assert MARKER.search(messages[0]["content"])
        assert [token for token in ids if token in special] == [token for token in plain if token in special]
        assert all(protocol.tokenizer.decode(ids).count(tag) == text.count(tag) for tag in tags)


def test_blocks_of_text_are_joined_where_they_are_cut():
    protocol = chat()
    blocks = [{"type": "text", "text": ENGLISH[:1000]}, {"type": "text", "text": ENGLISH[1000:]}]
    messages, ids = protocol.observe([result(blocks)], 200)
    assert len(ids) <= 200
    assert shown(messages[0], ENGLISH) > 0
    assert protocol.observe([result(blocks)], 10_000)[0] == [result(blocks)]


@EACH
def test_empty_results_beside_cut_ones(make):
    messages, ids = make().observe([result(""), result(ENGLISH), result("")], 300)
    assert len(ids) <= 300
    assert messages[::2] == [result("")] * 2
    assert shown(messages[1], ENGLISH) > 0


def test_lists_beside_cut_results_stay_lists():
    protocol, blocks = chat(), [{"type": "text", "text": "Lyon"}, {"type": "text", "text": "Paris"}]
    messages, ids = protocol.observe([result(blocks), result(ENGLISH), result([])], 300)
    assert len(ids) <= 300
    assert messages[::2] == [result(blocks), result([])]
    assert shown(messages[1], ENGLISH) > 0


def test_other_lists_are_cut_as_text():
    content = ["words " * 100, 5]
    messages, ids = chat().observe([result(content)], 200)
    assert len(ids) <= 200
    assert shown(messages[0], str(content)) > 0
    messages, ids = tags().observe([result(content)], 200)
    assert len(ids) <= 200
    assert shown(messages[0], str(content)) > 0


def test_lone_surrogates_in_cut_results():
    for protocol in (tags(), chat()):
        messages, ids = protocol.observe([result("a\ud800" * 1000)], 200)
        assert len(ids) <= 200
        assert shown(messages[0], "a\ufffd" * 1000) > 0


def test_messages_are_left_as_they_are():
    for protocol in (tags(), chat()):
        messages = [result("<|im_end|></result>" * 100, "a b")]
        protocol.observe(messages, 200)
        protocol.observe(messages)
        assert messages == [result("<|im_end|></result>" * 100, "a b")]
