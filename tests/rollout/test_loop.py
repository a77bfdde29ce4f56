"""The loop on a toy protocol whose tokens are letters: budgets, limits, masks, and who waits for whom."""

import sys
import threading
import time
from functools import partial

import pytest

from a2tgpo_trl.rollout import (
    BatchWriter,
    EndRollout,
    Rollout,
    RolloutLimits,
    Toolbox,
    ToolCall,
    ToolExecutor,
    ToolLoop,
    ToolProtocol,
    ToolResult,
    TurnWriter,
    WrittenTurn,
    loop,
)
from a2tgpo_trl.rollout.generation import writers


class Letters(ToolProtocol):
    """A token is a letter; `x?` calls the tool with x; `[…]` is an observation; an answer ends with a full stop."""

    def __init__(self):
        super().__init__(processing_class=None, eos_token_ids=[])

    def read_turn(self, ids, prefix, schemas):
        written = text(ids)
        message = {"role": "assistant", "content": written}
        return message, [ToolCall("look", {"at": c}) for c in written[:-1]] if written.endswith("?") else []

    def is_complete(self, ids):
        return text(ids).endswith(".")

    def observe(self, messages, max_tokens=None):
        if max_tokens is not None:
            messages = [{**message, "content": message["content"][: max_tokens - 2]} for message in messages]
        return messages, tokens("".join(f"[{message['content']}]" for message in messages))


def look(at: str) -> str:
    if at == "e":
        raise ValueError("no")
    if at == "z":
        raise EndRollout("over")
    return at.upper() * (20 if at == "w" else 1)


def tokens(text):
    return list(map(ord, text))


def text(ids):
    return "".join(map(chr, ids))


def logprobs_of(turn):
    """A value that tells which letter it belongs to."""
    return [-ord(letter) / 100 for letter in turn]


class Play:
    """Rollouts of one prompt that write the given turns; keeps what it was asked to go on with."""

    def __init__(self, *rollouts, prompt="p", logprobs=False, lockstep=True):
        self.logprobs = logprobs
        self.lockstep = lockstep
        self.left = [list(rest) for _, *rest in rollouts]
        self.contexts = []
        self.limits = []
        self.rollouts = []
        for first, *_ in rollouts:
            rollout = Rollout(tokens(prompt))
            rollout.add_turn(tokens(first), logprobs_of(first) if logprobs else None, Letters(), schemas=[])
            self.rollouts.append(rollout)
        self.toolboxes = [Toolbox({"look": look}, schemas=[]) for _ in rollouts]

    def generate(self, indices, contexts, max_tokens, batch_size):
        assert contexts == [self.rollouts[index].context_ids for index in indices]
        assert batch_size == len(indices) > 0
        self.contexts.append([text(context) for context in contexts])
        self.limits.append(max_tokens)
        turns = [self.left[index].pop(0)[:limit] for index, limit in zip(indices, max_tokens, strict=True)]
        return list(map(tokens, turns)), list(map(logprobs_of, turns)) if self.logprobs else None

    def writer(self):
        return BatchWriter(self.generate)

    def run(
        self, max_tool_turns=sys.maxsize, max_completion_length=1000, max_model_length=1000, executor=None, **limits
    ):
        limits = RolloutLimits(max_tool_turns, max_completion_length, max_model_length, **limits)
        writer = self.writer()
        played = ToolLoop(self.rollouts, self.toolboxes, writer, Letters(), executor or ToolExecutor(), limits)
        if self.lockstep:
            played.play_in_lockstep(lambda number: number)
        else:
            played.play()
        assert played.num_generations == len(self.contexts)
        assert writer.pending == 0
        assert None not in self.reasons()
        return len(played.results), sum(result.failed for result in played.results)

    def reasons(self):
        return [rollout.stop_reason for rollout in self.rollouts]

    def completions(self):
        return [text(rollout.completion_ids) for rollout in self.rollouts]

    def masks(self):
        return ["".join(map(str, rollout.tool_mask)) for rollout in self.rollouts]


class LetterWriter(TurnWriter):
    """Writes a letter of each rollout at a time, and takes others between two letters."""

    def __init__(self, left):
        self.left = left
        self.steps = 0
        self.contexts = []
        self.ends = []  # of turns: after how many letters, and whose
        self._writing = {}

    @property
    def pending(self):
        return len(self._writing)

    def submit(self, indices, contexts, max_tokens, batch_size):
        self.contexts.append([text(context) for context in contexts])
        for index, limit in zip(indices, max_tokens, strict=True):
            turn = self.left[index].pop(0)[:limit]
            self._writing[index] = self.steps + len(turn), turn

    def collect(self):
        self.steps += 1
        done = {index: turn for index, (end, turn) in self._writing.items() if end <= self.steps}
        for index in done:
            del self._writing[index]
            self.ends.append((self.steps, index))
        return [WrittenTurn(index, tokens(turn), logprobs_of(turn)) for index, turn in done.items()]

    def discard(self):
        self._writing.clear()


class PlayJoined(Play):
    """The same rollouts, whose first turns are not written yet, by a writer that they may join."""

    def __init__(self, *rollouts, prompt="p"):
        super().__init__(*rollouts, prompt=prompt, logprobs=True, lockstep=False)
        self.left = [list(turns) for turns in rollouts]
        self.rollouts = [Rollout(tokens(prompt)) for _ in rollouts]
        self.joined = LetterWriter(self.left)
        self.contexts = self.joined.contexts

    def writer(self):
        return self.joined


def test_tokens_and_masks_of_rollouts_with_0_1_and_3_tool_turns_and_parallel_calls():
    play = Play(["done."], ["a?", "one."], ["b?", "cd?", "e?", "end"], ["fg?", ""])
    assert play.run() == (7, 1)  # e fails
    drawn = [
        "",
        "        done.",
        "        11111",
        "        a?[A]one.",
        "        110001111",
        "        b?[B]cd?[C][D]e?[{'error': 'no'}]end",
        "        110001110000001100000000000000000111",
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


@pytest.mark.parametrize(("max_model_length", "completion"), [(10, "a?"), (11, "a?[A]e"), (13, "a?[A]end")])
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
    play.toolboxes = [Toolbox({"look": look}, ["schema"])]
    ToolLoop(play.rollouts, play.toolboxes, play.writer(), Spy(), ToolExecutor(), RolloutLimits(9, 99, 99)).play()
    assert seen == [("pa?[A]", "end", ["schema"])]


def test_prompt_is_left_alone():
    prompt, first = tokens("p"), tokens("a?")
    rollout = Rollout(prompt)
    rollout.add_turn(first, None, Letters(), schemas=[])
    box = Toolbox({"look": look}, [])
    writer = BatchWriter(lambda *_: ([tokens("end")], None))
    ToolLoop([rollout], [box], writer, Letters(), ToolExecutor(), RolloutLimits(9, 99, 99)).play()
    assert (text(prompt), text(first), text(rollout.context_ids)) == ("p", "a?", "pa?[A]end")


# ---- why a rollout ended -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "limits", "reason", "completion"),
    [
        (["x."], {}, "answered", "x."),
        (["a?", "x."], {}, "answered", "a?[A]x."),
        (["x"], {}, "length", "x"),
        ([""], {}, "length", ""),
        (["a?", "xyz."], {"max_completion_length": 7}, "length", "a?[A]xy"),
        (["a?", "xyz."], {"max_model_length": 8}, "length", "a?[A]xy"),
        (["a?", "xyz."], {"max_completion_length": 5}, "length", "a?[A]"),
        (["a?", "xyz."], {"max_turn_tokens": 2}, "length", "a?[A]xy"),
        (["a?", "xyz."], {"max_turn_tokens": 4}, "answered", "a?[A]xyz."),
        (["a?", "b?", "c?"], {"max_tool_turns": 2}, "max_turns", "a?[A]b?[B]c?"),
        (["a?"], {"max_tool_turns": 0}, "max_turns", "a?"),
        (["a?"], {"max_completion_length": 4}, "overlong_observation", "a?"),
        (["w?"], {"max_completion_length": 9}, "overlong_observation", "w?"),
        (["w?", "x."], {"max_completion_length": 9, "max_observation_tokens": 4}, "answered", "w?[WW]x."),
        (["z?", "never"], {}, "tool_stop", "z?"),
        (["a?", "bz?", "never"], {}, "tool_stop", "a?[A]bz?"),
        (["z?", "never"], {"max_completion_length": 2}, "tool_stop", "z?"),
    ],
)
@pytest.mark.parametrize(
    "play_with", [Play, partial(Play, lockstep=False), PlayJoined], ids=["lockstep", "batch", "joined"]
)
def test_stop_reasons(turns, limits, reason, completion, play_with):
    play = play_with(turns)
    play.run(**limits)
    assert play.reasons() == [reason]
    assert play.completions() == [completion]


def test_results_of_the_calls_that_ended_a_rollout_stay_in_its_messages():
    play = Play(["a?", "bz?"])
    play.run()
    assert [message["content"] for message in play.rollouts[0].messages] == ["a?", "A", "bz?", "B", "over"]
    assert play.masks() == ["11000111"]


def test_generation_is_told_how_many_tokens_each_rollout_may_have():
    play = Play(["a?", "b?", "x."], ["abc?", "y."])
    play.run(max_completion_length=20)
    assert play.limits == [[20 - 5, 20 - 13], [20 - 10]]
    play = Play(["a?", "x."])
    play.run(max_turn_tokens=3)
    assert play.limits == [[3]]
    play = Play(["a?", "x."])
    play.run(max_model_length=10)
    assert play.limits == [[10 - 1 - 5]]


def test_an_interrupted_loop_leaves_nothing_behind():
    executor = ToolExecutor()
    play = Play(["a?", "x."], ["b?", "y."])

    def generate(*_):
        raise KeyboardInterrupt

    writer = BatchWriter(generate)
    played = ToolLoop(play.rollouts, play.toolboxes, writer, Letters(), executor, RolloutLimits(9, 99, 99))
    with pytest.raises(KeyboardInterrupt):
        played.play_in_lockstep(lambda number: number)
    assert executor.pending == writer.pending == 0
    again = Play(["c?", "x."])
    again.run(executor=executor)
    assert again.completions() == ["c?[C]x."]


# ---- who waits for whom --------------------------------------------------------------------------------------------


class Clock:
    """Time that only passes where the loop waits for tools or generates."""

    def __init__(self, monkeypatch, generation_seconds):
        self.now = 0.0
        self.generation_seconds = generation_seconds
        for module in (loop, writers):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)


class TimedExecutor:
    """The executor's interface; the n-th calls of a rollout take the n-th of its times."""

    def __init__(self, clock, *seconds):
        self.clock = clock
        self.seconds = [list(times) for times in seconds]
        self.running = {}

    @property
    def pending(self):
        return len(self.running)

    def submit(self, key, calls, tools, environment=None):
        self.running[key] = self.clock.now + self.seconds[key].pop(0)

    def collect(self, timeout=None):
        if not self.running:
            return []
        first = min(self.running.values())
        self.clock.now = max(
            self.clock.now, min(first, self.clock.now + (sys.maxsize if timeout is None else timeout))
        )
        done = [key for key, end in self.running.items() if end <= self.clock.now]
        for key in done:
            del self.running[key]
        return [(key, [ToolResult("look", "R")]) for key in done]

    def discard(self):
        raise AssertionError("nothing failed")


def timeline(monkeypatch, *seconds, generation_seconds, patience=0.0, agree=None):
    """Which rollouts take a turn together, and when, if their calls take these seconds."""
    clock = Clock(monkeypatch, generation_seconds)
    rollouts = []
    for _ in seconds:
        rollout = Rollout([0])
        rollout.add_turn(tokens("a?"), None, Letters(), schemas=[])
        rollouts.append(rollout)
    left = [["a?"] * (len(times) - 1) + ["x."] for times in seconds]
    turns = []

    def generate(indices, contexts, max_tokens, batch_size):
        turns.append((round(clock.now, 6), indices))
        clock.now += clock.generation_seconds
        return [tokens(left[index].pop(0)) for index in indices], None

    boxes, executor = [Toolbox({}, [])] * len(rollouts), TimedExecutor(clock, *seconds)
    writer = BatchWriter(generate, patience)
    played = ToolLoop(rollouts, boxes, writer, Letters(), executor, RolloutLimits(99, 999, 999))
    if agree is None:
        played.play()
    else:
        played.play_in_lockstep(agree)
    assert all(rollout.stop_reason == "answered" for rollout in rollouts)
    return turns, round(clock.now, 6)


def test_tools_of_similar_speed_are_waited_for(monkeypatch):
    turns, end = timeline(monkeypatch, [1.0, 2.0], [1.5, 1.0], generation_seconds=5.0, patience=5.0)
    assert turns == [(1.5, [0, 1]), (8.5, [0, 1])]
    assert end == 13.5


def test_a_slow_tool_is_waited_for_as_long_as_a_generation_takes(monkeypatch):
    turns, _ = timeline(monkeypatch, [1.0, 1.0], [100.0], [1.0, 2.0], generation_seconds=5.0, patience=5.0)
    assert turns == [
        (6.0, [0, 2]),  # ready at 1, with patience until 6
        (13.0, [0, 2]),  # written at 11; the first is ready at 12, the other at 13; the late one is not waited for
        (100.0, [1]),
    ]


def test_lockstep_waits_for_all(monkeypatch):
    turns, end = timeline(monkeypatch, [1.0, 1.0], [100.0], generation_seconds=5.0, agree=lambda number: number)
    assert turns == [(100.0, [0, 1]), (106.0, [0])]
    assert end == 111.0


def test_patience_is_what_the_last_generation_took(monkeypatch):
    turns, _ = timeline(monkeypatch, [1.0, 1.0], [1.0, 4.0], generation_seconds=4.0, patience=0.5)
    # Written at 5; 0 is ready at 6 and has four seconds of patience, and 1 is there in time
    assert turns == [(1.0, [0, 1]), (9.0, [0, 1])]


def test_results_that_came_during_a_generation_are_used_at_once(monkeypatch):
    turns, _ = timeline(monkeypatch, [1.0, 0.0], [3.0], generation_seconds=4.0)
    assert turns == [(1.0, [0]), (5.0, [0, 1])]


def test_rollouts_with_instant_tools_stay_together_even_where_generation_takes_no_time(monkeypatch):
    turns, _ = timeline(monkeypatch, [0.01] * 2, [0.09] * 2, [0.3], [0.2], generation_seconds=0.0)
    # From 0.1 on nobody waits for the slow ones; those that called at 0.1 are together again
    assert turns == [(0.1, [0, 1]), (0.19, [0, 1]), (0.2, [3]), (0.3, [2])]


def test_a_slow_tool_is_waited_for_only_once(monkeypatch):
    fast = [1.0] * 5
    turns, _ = timeline(monkeypatch, fast, fast, [100.0], generation_seconds=5.0, patience=5.0)
    starts = [start for start, indices in turns if indices == [0, 1]]
    assert starts == [6.0, 12.0, 18.0, 24.0, 30.0]  # one wait of 5 s, then generations and calls only


def test_one_that_was_late_and_came_is_waited_for_again(monkeypatch):
    turns, _ = timeline(monkeypatch, [1.0] * 3, [8.0, 3.0], generation_seconds=5.0, patience=5.0)
    assert turns == [(6.0, [0]), (12.0, [0, 1]), (20.0, [0, 1])]


def test_processes_that_have_nothing_to_do_generate_as_often_as_others():
    others = iter([3, 2, 1, 0])
    asked, generated = [], []

    def agree(size):
        asked.append(size)
        return max(size, next(others))

    def generate(indices, contexts, max_tokens, batch_size):
        generated.append((indices, max_tokens, batch_size))
        return [tokens("x.")] * len(indices), None

    rollout, box = Rollout([0]), Toolbox({"look": look}, [])
    rollout.add_turn(tokens("a?"), None, Letters(), schemas=[])
    writer = BatchWriter(generate)
    ToolLoop([rollout], [box], writer, Letters(), ToolExecutor(), RolloutLimits(9, 30, 99)).play_in_lockstep(agree)
    assert asked == [1, 0, 0, 0]
    assert generated == [([0], [25], 3), ([], [], 2), ([], [], 1)]
    assert text(rollout.completion_ids) == "a?[A]x."


def test_a_hanging_tool_does_not_hold_up_the_others():
    finished = threading.Event()

    def wait(at: str) -> str:
        assert finished.wait(30)
        return "late"

    play = Play(["a?", "b?", "x."], ["s?", "y."], lockstep=False)
    play.toolboxes[1] = Toolbox({"look": wait}, [])
    generate = play.generate

    def generate_and_tell(indices, *rest):
        turns = generate(indices, *rest)
        if turns[0][0] == tokens("x."):
            finished.set()
        return turns

    play.generate = generate_and_tell
    play.run()
    assert play.completions() == ["a?[A]b?[B]x.", "s?[late]y."]
    assert play.contexts == [["pa?[A]"], ["pa?[A]b?[B]"], ["ps?[late]"]]


# ---- a writer that rollouts may join -------------------------------------------------------------------------------

TURNS = [["done."], ["a?", "one."], ["b?", "cd?", "e?", "end"], ["fg?", ""], ["z?"]]


def test_rollouts_that_join_are_those_of_batches():
    batches, joined = Play(*TURNS, logprobs=True), PlayJoined(*TURNS)
    assert joined.run() == batches.run()
    for ours, theirs in zip(joined.rollouts, batches.rollouts, strict=True):
        assert ours.context_ids == theirs.context_ids
        assert ours.tool_mask == theirs.tool_mask
        assert ours.logprobs == theirs.logprobs
        assert ours.messages == theirs.messages
        assert ours.stop_reason == theirs.stop_reason
    assert len(batches.contexts) == 3


def test_a_short_rollout_is_over_while_the_first_turn_of_another_is_written():
    called = threading.Event()

    def wait(at: str) -> str:
        called.set()
        return at.upper()

    play = PlayJoined(["a?", "b?", "x."], ["y" * 1000 + "."])
    play.toolboxes[0] = Toolbox({"look": wait}, [])
    collect = play.joined.collect

    def collect_slowly():
        is_calling = play.joined.pending == 1 and len(play.joined.ends) < 3
        time.sleep(0.01 * is_calling)
        return collect()

    play.joined.collect = collect_slowly
    play.run(max_completion_length=2000, max_model_length=3000)
    assert called.is_set()
    assert play.contexts == [["p", "p"], ["pa?[A]"], ["pa?[A]b?[B]"]]
    assert [index for _, index in play.joined.ends] == [0, 0, 0, 1]
    assert play.joined.ends[2][0] < play.joined.ends[3][0] == 1001


def test_a_slow_tool_holds_up_nobody_where_rollouts_join():
    finished = threading.Event()

    def wait(at: str) -> str:
        assert finished.wait(30)
        return "late"

    def last(at: str) -> str:
        finished.set()
        return at.upper()

    play = PlayJoined(["s?", "y."], ["a?", "b?", "c?", "x."])
    play.toolboxes[0] = Toolbox({"look": wait}, [])
    calls = iter([look, look, last])
    play.toolboxes[1] = Toolbox({"look": lambda at: next(calls)(at)}, [])
    play.run()
    assert play.completions() == ["s?[late]y.", "a?[A]b?[B]c?[C]x."]


def test_each_turn_that_joins_has_its_own_limit():
    play = PlayJoined(["abc?", "de?", "xyz."], ["f?", "uvwxyz."], ["abcdefghijk."])
    play.run(max_completion_length=11)
    assert play.completions() == ["abc?", "f?[F]uvwxyz", "abcdefghijk"]
    assert play.reasons() == ["overlong_observation", "length", "length"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_writer_that_is_interrupted_keeps_nothing(error):
    executor, play = ToolExecutor(), PlayJoined(["a?", "b?", "x."], ["yyyyyyyyyyy"])
    collect = play.joined.collect

    def collect_and_fail():
        if play.joined.steps == 4:
            raise error
        return collect()

    play.joined.collect = collect_and_fail
    with pytest.raises(error):
        play.run(executor=executor)
    assert executor.pending == play.joined.pending == 0
