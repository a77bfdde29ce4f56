"""The loop on a toy protocol whose tokens are letters: budgets, limits, masks."""

import sys

import pytest

from a2tgpo_trl.rollout import Rollout, RolloutLimits, ToolExecutor, ToolProtocol, run_tool_loop


class Letters(ToolProtocol):
    """A token is a letter; `x?` calls the tool with x; `[…]` is an observation."""

    def read_turn(self, ids, prefix, schemas):
        text = "".join(map(chr, ids))
        message = {"role": "assistant", "content": text}
        calls = [{"type": "function", "function": {"name": "look", "arguments": {"at": c}}} for c in text[:-1]]
        return message | ({"tool_calls": calls} if text.endswith("?") else {})

    def observation_ids(self, messages):
        return tokens("".join(f"[{message['content']}]" for message in messages))


def look(at: str) -> str:
    if at == "e":
        raise ValueError
    return at.upper()


def tokens(text):
    return list(map(ord, text))


def text(ids):
    return "".join(map(chr, ids))


def logprobs_of(turn):
    """A value that tells which letter it belongs to."""
    return [-ord(letter) / 100 for letter in turn]


class Play:
    """Rollouts of one prompt that write the given turns; keeps what it was asked to go on with."""

    def __init__(self, *rollouts, prompt="p", logprobs=False):
        self.logprobs = logprobs
        self.left = {}
        self.contexts = []
        self.rollouts = []
        for first, *rest in rollouts:
            rollout = Rollout(tokens(prompt), {"look": look}, schemas=[])
            rollout.add_turn(tokens(first), logprobs_of(first) if logprobs else None, Letters())
            self.rollouts.append(rollout)
            self.left[id(rollout)] = rest

    def generate(self, contexts):
        self.contexts.append([text(context) for context in contexts])
        asked = [next(r for r in self.rollouts if r.context_ids == context) for context in contexts]
        turns = [self.left[id(rollout)].pop(0) for rollout in asked]
        return list(map(tokens, turns)), list(map(logprobs_of, turns)) if self.logprobs else None

    def run(self, max_tool_turns=sys.maxsize, max_completion_length=1000, max_model_length=1000):
        limits = RolloutLimits(max_tool_turns, max_completion_length, max_model_length)
        return run_tool_loop(self.rollouts, self.generate, Letters(), ToolExecutor(), limits)

    def completions(self):
        return [text(rollout.completion_ids) for rollout in self.rollouts]

    def masks(self):
        return ["".join(map(str, rollout.tool_mask)) for rollout in self.rollouts]


def test_tokens_and_masks_of_rollouts_with_0_1_and_3_tool_turns_and_parallel_calls():
    play = Play(["done."], ["a?", "one."], ["b?", "cd?", "e?", "end"], ["fg?", ""])
    assert play.run() == (7, 1)  # e fails
    drawn = [
        "",
        "        done.",
        "        11111",
        "        a?[A]one.",
        "        110001111",
        "        b?[B]cd?[C][D]e?[{'error': ''}]end",
        "        1100011100000011000000000000000111",
        "        fg?[F][G]",
        "        111000000",
        "    ",
    ]
    lines = [line[8:] for line in drawn[1:-1]]
    assert play.completions() == lines[0::2]
    assert play.masks() == lines[1::2]
    #               the turn after the first observation   after the second      after the third
    assert play.contexts == [["pa?[A]", "pb?[B]", "pfg?[F][G]"], ["pb?[B]cd?[C][D]"], [f"p{lines[4][:-3]}"]]


def test_messages_alternate():
    play = Play(["a?", "bc?", "end"])
    play.run()
    roles = [(message["role"], message["content"]) for message in play.rollouts[0].messages]
    assert roles == [
        ("assistant", "a?"),
        ("tool", "A"),
        ("assistant", "bc?"),
        ("tool", "B"),
        ("tool", "C"),
        ("assistant", "end"),
    ]


def test_nothing_is_generated_when_all_answer_at_once():
    play = Play(["x."], ["y."], [""])
    assert play.run() == (0, 0)
    assert play.contexts == []
    assert play.completions() == ["x.", "y.", ""]
    assert [len(rollout.messages) for rollout in play.rollouts] == [1, 1, 1]  # even what is empty is a message


def test_no_rollouts():
    assert Play().run() == (0, 0)


@pytest.mark.parametrize(
    ("max_tool_turns", "completion", "calls"),
    [
        (0, "a?", 0),
        (1, "a?[A]b?", 1),
        (2, "a?[A]b?[B]c?", 2),
        (3, "a?[A]b?[B]c?[C]end", 3),
        (4, "a?[A]b?[B]c?[C]end", 3),
    ],
)
def test_tool_turns_are_limited(max_tool_turns, completion, calls):
    play = Play(["a?", "b?", "c?", "end"])
    assert play.run(max_tool_turns=max_tool_turns) == (calls, 0)
    assert play.completions() == [completion]


@pytest.mark.parametrize(
    ("budget", "completion", "mask", "last"),
    [
        (4, "a?", "11", "assistant"),  # the observation would exceed the budget: dropped, the tool message too
        (5, "a?[A]", "11000", "tool"),  # it fits exactly: the turn after it is cut to nothing, and is no message
        (6, "a?[A]e", "110001", "assistant"),  # the turn is cut
        (8, "a?[A]end", "11000111", "assistant"),  # all fits exactly
        (9, "a?[A]end", "11000111", "assistant"),
    ],
)
@pytest.mark.parametrize("with_logprobs", [False, True])
def test_token_budget(budget, completion, mask, last, with_logprobs):
    play = Play(["a?", "end"], logprobs=with_logprobs)
    assert play.run(max_completion_length=budget) == (1, 0)
    (rollout,) = play.rollouts
    assert (text(rollout.completion_ids), "".join(map(str, rollout.tool_mask))) == (completion, mask)
    assert rollout.messages[-1]["role"] == last
    assert rollout.messages[-1]["content"] == {"tool": "A"}.get(last, completion.rpartition("]")[2])
    if with_logprobs:
        assert len(rollout.logprobs) == len(completion)
    else:
        assert rollout.logprobs is None


def test_a_call_that_is_cut_is_not_made():
    play = Play(["a?", "bc?", "never"])
    assert play.run(max_completion_length=7) == (1, 0)
    assert play.completions() == ["a?[A]bc"]


@pytest.mark.parametrize(("max_model_length", "completion"), [(10, "a?"), (11, "a?[A]end"), (12, "a?[A]end")])
def test_context_of_the_model_must_have_room_for_a_token(max_model_length, completion):
    play = Play(["a?", "end"], prompt="start")
    play.run(max_model_length=max_model_length)  # prompt 5, call 2, observation 3: 10 tokens, and one more to write
    assert play.completions() == [completion]


def test_a_dropped_observation_ends_only_its_rollout():
    play = Play(["a?", "end"], ["bcd?", "never"], ["x."], ["f?", "g?", "end"])
    assert play.run(max_completion_length=12) == (6, 0)  # calls whose observation is dropped were made
    assert play.completions() == ["a?[A]end", "bcd?", "x.", "f?[F]g?[G]en"]
    assert play.contexts == [["pa?[A]", "pf?[F]"], ["pf?[F]g?[G]"]]
    assert [message["role"] for message in play.rollouts[1].messages] == ["assistant"]


def test_nothing_is_generated_when_all_observations_are_dropped():
    play = Play(["a?", "never"], ["b?", "never"])
    assert play.run(max_completion_length=3) == (2, 0)
    assert play.contexts == []


def test_logprobs_stay_with_their_tokens():
    play = Play(["a?", "bc?", "end"], ["x."], logprobs=True)
    play.run(max_completion_length=16)
    assert play.completions() == ["a?[A]bc?[B][C]en", "x."]
    long, short = play.rollouts
    expected = [m * -token / 100 for token, m in zip(long.completion_ids, long.tool_mask, strict=True)]
    assert long.logprobs == expected
    assert [value for value, mask in zip(long.logprobs, long.tool_mask, strict=True) if not mask] == [0.0] * 9
    assert short.logprobs == logprobs_of("x.")


def test_the_protocol_sees_the_context_and_the_schemas():
    seen = []

    class Spy(Letters):
        def read_turn(self, ids, prefix, schemas):
            seen.append((text(prefix), text(ids), schemas))
            return super().read_turn(ids, prefix, schemas)

    play = Play(["a?", "end"])
    play.rollouts[0].schemas = ["schema"]
    run_tool_loop(play.rollouts, play.generate, Spy(), ToolExecutor(), RolloutLimits(9, 99, 99))
    assert seen == [("pa?[A]", "end", ["schema"])]


def test_prompt_is_left_alone():
    prompt, first = tokens("p"), tokens("a?")
    rollout = Rollout(prompt, {"look": look}, schemas=[])
    rollout.add_turn(first, None, Letters())
    run_tool_loop(
        [rollout], lambda contexts: ([tokens("end")], None), Letters(), ToolExecutor(), RolloutLimits(9, 99, 99)
    )
    assert (text(prompt), text(first), text(rollout.context_ids)) == ("p", "a?", "pa?[A]end")
