"""Rollouts that join vLLM's running engine are those of TRL's batches; the engine is the real one."""

import _thread

import pytest

import chance
from a2tgpo_trl.integrations.replaced import replaced
from a2tgpo_trl.rollout import EndRollout
from chain import CALL
from on_backends import CHAIN_ROWS, needs_vllm

pytestmark = needs_vllm


def look(key: int) -> str:
    """
    Look something up.

    Args:
        key: Where to look.
    """
    if key % 5 == 0:
        raise EndRollout("over")
    if key % 7 == 0:
        raise ValueError("no")
    return chance.look(key)


def rolled_out(trainer, rows):
    """Rollouts of a training batch."""
    trainer.model.train()
    return trainer._roll_out([dict(row) for row in rows]).rollouts


def engine_of(trainer):
    return trainer.vllm_generation.llm.llm_engine


def assert_joined_as_in_batches(trainer, rows):
    assert trainer._player.turns.joins
    joined = rolled_out(trainer, rows)
    with replaced(trainer._player.turns, joins=False):
        batches = rolled_out(trainer, rows)
    for ours, theirs in zip(joined, batches, strict=True):
        assert ours.completion_ids == theirs.completion_ids
        assert ours.tool_mask == theirs.tool_mask
        assert ours.messages == theirs.messages
        assert ours.stop_reason == theirs.stop_reason
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    return joined


SEED = {"generation_kwargs": {"seed": 3}}  # of each request


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": 0.7, **SEED}, "answered"),
        ({"generation_kwargs": {"seed": 3, "repetition_penalty": 1.3, "top_k": 20}}, "answered"),
        ({**SEED, "max_completion_length": 70, "max_tool_calling_iterations": 1}, "max_turns"),
        ({**SEED, "tools": (look,), "max_turn_tokens": 9}, "tool_stop"),
    ],
    ids=["sampled", "penalty", "limits", "ends"],
)
def test_chat_rollouts_and_their_log_probabilities(by_chance, options, reason):
    trainer = by_chance("vllm", **options)
    rollouts = assert_joined_as_in_batches(trainer, chance.rows())
    assert reason in {rollout.stop_reason for rollout in rollouts}
    assert sum(len(rollout.turns) > 1 for rollout in rollouts) > 3


def test_tag_rollouts_and_their_log_probabilities(by_chain):
    trainer = by_chain("vllm", max_completion_length=60, num_generations=4, **SEED)
    rollouts = assert_joined_as_in_batches(trainer, [row for row in CHAIN_ROWS for _ in range(2)])
    assert trainer._tokenizer.decode(rollouts[0].turns[0].ids) == CALL


def test_a_turn_may_have_fewer_tokens_than_turns_have_at_least(by_chance):
    trainer = by_chance("vllm", max_turn_tokens=3, generation_kwargs={"min_tokens": 6})
    rollouts = rolled_out(trainer, chance.rows())
    assert {len(turn.ids) for rollout in rollouts for turn in rollout.turns} == {3}


@pytest.mark.parametrize("joins", [True, False])
def test_a_tool_runs_while_the_first_turn_of_another_rollout_is_written(by_chain, joins):
    unfinished = []

    def search(query: str) -> str:
        """
        Look something up.

        Args:
            query: What to look for.
        """
        return "Lyon is in France."

    trainer = by_chain("vllm", tools=[search], max_completion_length=200)
    engine = engine_of(trainer)
    add = engine.add_request

    def add_and_tell(*args, **kwargs):
        unfinished.append(engine.get_num_unfinished_requests())
        return add(*args, **kwargs)

    with replaced(trainer._player.turns, joins=joins), replaced(engine, add_request=add_and_tell):
        rollouts = trainer.play([CHAIN_ROWS[0], CHAIN_ROWS[3]])
    assert [len(rollout.turns) for rollout in rollouts] == [2, 1]
    assert unfinished == [0, 1, 1 if joins else 0]  # the second writes until its limit


def test_a_step_that_fails_leaves_the_engine_empty(by_chance):
    trainer = by_chance("vllm")
    before = trainer.play(chance.rows(), greedy=True)
    engine = engine_of(trainer)
    step, steps = engine.step, []

    def step_and_fail():
        steps.append(engine.get_num_unfinished_requests())
        if len(steps) == 9:
            raise RuntimeError("no memory")
        return step()

    with replaced(engine, step=step_and_fail), pytest.raises(RuntimeError, match="no memory"):
        trainer.play(chance.rows(), greedy=True)
    assert steps[-1] > 0
    assert not engine.has_unfinished_requests()
    assert engine.engine_core.engine_core.scheduler.get_num_unfinished_requests() == 0
    assert trainer._player.executor.pending == 0
    again = trainer.play(chance.rows(), greedy=True)
    assert [rollout.completion_ids for rollout in again] == [rollout.completion_ids for rollout in before]


@pytest.mark.usefixtures("pythons_handler")
def test_ctrl_c_leaves_an_engine_that_goes_on(by_chance):
    pressed = [False]

    def look(key: int) -> str:
        """
        Look something up.

        Args:
            key: Where to look.
        """
        if pressed[0]:
            _thread.interrupt_main()
        return chance.look(key)

    trainer = by_chance("vllm", tools=(look,))
    before = trainer.play(chance.rows(), greedy=True)
    for _ in range(4):
        pressed[0] = True
        with pytest.raises(KeyboardInterrupt):
            trainer.play(chance.rows(), greedy=True)
        pressed[0] = False
        assert trainer._player.executor.pending == 0
        assert not engine_of(trainer).has_unfinished_requests()
        again = trainer.play(chance.rows(), greedy=True)
        assert [rollout.completion_ids for rollout in again] == [rollout.completion_ids for rollout in before]


class Asleep:
    """Keeps when an engine is woken up, steps and is put to sleep; on a CPU it cannot sleep."""

    def __init__(self, llm):
        self.events = []
        step = llm.llm_engine.step

        def tell(event):
            if self.events[-1:] != [event]:
                self.events.append(event)

        self.engine = replaced(llm.llm_engine, step=lambda: tell("step") or step())
        self.llm = replaced(
            llm, wake_up=lambda tags: tell(f"wake up {tags[0]}"), sleep=lambda level: tell(f"sleep {level}")
        )


def test_the_engine_is_awake_for_the_whole_loop_and_then_sleeps(by_chance):
    trainer = by_chance("vllm")
    generation = trainer.vllm_generation
    asleep = Asleep(generation.llm)
    with asleep.engine, asleep.llm, replaced(generation, enable_sleep_mode=True, _llm_weights_sleeping=True):
        rollouts = trainer.play(chance.rows(), greedy=True)
    assert any(len(rollout.turns) > 2 for rollout in rollouts)
    assert asleep.events == ["wake up weights", "wake up kv_cache", "step", "sleep 2"]


def test_first_turns_that_a_function_of_the_user_wrote_are_kept(by_chain):
    trainer = by_chain("vllm", max_completion_length=60)

    def write(prompts, trainer):
        turn = trainer._tokenizer(f"Lyon{CALL}")["input_ids"]
        prompt_ids = trainer._tokenizer(prompts)["input_ids"]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [turn] * len(prompts),
            "logprobs": [[-0.5] * len(turn)] * len(prompts),
        }

    with replaced(trainer, rollout_func=write):
        rollouts = trainer.play(CHAIN_ROWS[:2], greedy=True)
    assert trainer._player.turns.joins
    assert [rollout.turns[0].text for rollout in rollouts] == [f"Lyon{CALL}"] * 2
    assert [rollout.turns[-1].text for rollout in rollouts] == ["Paris."] * 2
