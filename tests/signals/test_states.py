"""States before turns: which are equal, and what GiGPO makes of them."""

import pytest
import torch
from datasets import Dataset

import tiny
from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.rewards import exact_match_reward
from a2tgpo_trl.rollout import Rollout, Turn
from a2tgpo_trl.signals.states import normalized, state_id, state_keys
from conftest import GROUP, QUESTION


def turn(observation, state=None):
    observed = [] if observation is None else [{"role": "tool", "content": observation}]
    return Turn([1], {"role": "assistant", "content": "x"}, observed=observed, state=state)


def test_normalized():
    assert normalized("  Lyon\n is in ＦRANCE ") == "lyon is in france"
    assert normalized(None) == ""


def test_states_are_what_was_read_before():
    rollout = Rollout([7, 8], [turn("A  city"), turn("Another"), turn(None)])
    assert state_keys(rollout) == ["[7, 8]", "a city", "another"]
    with_keys = Rollout([7, 8], [turn("A  city", "room 2"), turn("Another", "room 3"), turn(None)], state="room 1")
    assert state_keys(with_keys) == ["room 1", "room 2", "room 3"]
    assert 0 <= state_id("a city") < 2**63 and state_id("a city") == state_id("a city") != state_id("b city")


def test_gigpo_compares_turns_from_the_same_observation(build, rows):
    """Three rollouts ask for Lyon first and read the same; the fourth asks for something else."""
    group = [
        ["<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"],
        ["<search>Lyon</search>", "<answer>Rome</answer><|im_end|>"],
        ["<search>Lyon</search>", "<search>capital of France</search>", "<answer>Paris</answer><|im_end|>"],
        ["<search>x</search>", "<answer>Rome</answer><|im_end|>"],
    ]
    trainer = build(group, advantage_estimator="gigpo", turn_gamma=1.0, per_device_eval_batch_size=4)
    played = trainer.play(rows[:1], num_generations=4)
    parts = [[turn.credit["advantage"] - turn.credit["outcome_advantage"] for turn in own.turns] for own in played]
    # All set out from the prompt: returns 1, 0, 1, 0. After "Lyon is in France": 1, 0, 1. The others were there alone
    assert parts[0] == pytest.approx([0.5, 1 / 3], abs=1e-5)
    assert parts[1] == pytest.approx([-0.5, -2 / 3], abs=1e-5)
    assert parts[2] == pytest.approx([0.5, 1 / 3, 0], abs=1e-5)
    assert parts[3] == pytest.approx([-0.5, 0], abs=1e-5)
    assert [own.turns[-1].credit["lone_state"] for own in played] == [0, 0, 1, 1]


class Rooms:
    """Two doors that lead to the same room, whatever is said of it."""

    def reset(self, **row):
        self.room, self.doors = "hall", 0
        return QUESTION

    def state_key(self):
        return self.room

    def open(self, door: str) -> str:
        """
        Open a door.

        Args:
            door: Which one.
        """
        self.room = "cellar"
        return f"You came through {door}."


def test_an_environment_says_what_state_it_is_in(config, monkeypatch):
    call = '<tool_call>\n{"name": "%s", "arguments": {"door": "%s"}}\n</tool_call><|im_end|>'
    script = [
        [call % ("open", "left"), "<answer>Paris</answer><|im_end|>"],
        [call % ("open", "right"), "<answer>Rome</answer><|im_end|>"],
        [call % ("state_key", "left"), "<answer>Rome</answer><|im_end|>"],
        ["<answer>Paris</answer><|im_end|>"],
    ]
    tiny.Script(script).install(monkeypatch)
    trainer = A2TGPOTrainer(
        tiny.model(), exact_match_reward, config(advantage_estimator="gigpo", turn_gamma=1.0, max_steps=1),
        Dataset.from_list([{"answer": "Paris"}] * 8), processing_class=tiny.chat_tokenizer(), environment_factory=Rooms,
    )  # fmt: skip
    assert [tool.__name__ for tool in trainer.tools] == ["open"]
    trainer.train()
    rows = read_turns(trainer.args.output_dir).to_pylist()
    second = [row for row in rows if row["turn"] == 1]
    parts = [row["advantage"] - row["outcome_advantage"] for row in second]
    # The third is still in the hall, where all four began: returns 1, 0, 0, 1 and now 0
    assert parts == pytest.approx([0.5, -0.5, -0.4], abs=1e-5)
    assert "Tool state_key not found" in rows[4]["calls"][0]["result"]


def test_masked_completions_set_out_from_no_state(build, rows):
    """The last one is cut, and had more turns than those that are trained on."""
    cut = [*GROUP[:2], GROUP[1], [*["<search>Lyon</search>"] * 3, "no end"]]
    trainer = build(cut, advantage_estimator="gigpo", mask_truncated_completions=True, per_device_eval_batch_size=4)
    measure, signal = trainer.signals["states"].measure, []
    trainer.signals["states"].measure = lambda *given: signal.append(measure(*given)) or signal[-1]
    played = trainer.play(rows[:1], num_generations=4)
    assert [len(own.turns) for own in played] == [1, 2, 2, 4]
    states = signal[0]["states"]
    first, second = state_id(repr(played[0].prompt_ids)), state_id("lyon is in france.")
    assert states.tolist() == [[first, -1], [first, second], [first, second], [-1, -1]]


def test_states_and_rewards_of_two_prompts_never_meet(build):
    same = [["<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"], ["<answer>Rome</answer><|im_end|>"]] * 2
    rows = [{"prompt": text, "answer": "Paris"} for text in (QUESTION, "Lyon?") for _ in range(4)]
    trainer = build(
        same * 2, advantage_estimator="gigpo", per_device_train_batch_size=8, steps_per_generation=1, num_iterations=2,
        dataset=Dataset.from_list(rows[::4] * 4),
    )  # fmt: skip
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    assert torch.equal(batch["advantages"][:4], batch["advantages"][4:])


def test_a_tool_of_that_name_is_a_tool(build):
    def state_key(query: str) -> str:
        """
        Look up a key.

        Args:
            query: Which one.
        """
        return f"key of {query}"

    group = [["<state_key>a</state_key>", "<answer>Paris</answer><|im_end|>"]] * 4
    trainer = build(group, tools=[state_key], advantage_estimator="grpo", per_device_eval_batch_size=4)
    assert trainer.tools == [state_key]
    assert trainer.play([{"prompt": QUESTION, "answer": "Paris"}])[0].turns[0].observation == "key of a"


class Broken(Rooms):
    def state_key(self):
        raise KeyError("room")


class Waiting(Rooms):
    async def state_key(self):
        return "room"


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [(Broken, RuntimeError, "Broken.state_key failed: KeyError"), (Waiting, TypeError, "is a coroutine function")],
)
def test_a_state_that_cannot_be_told_is_an_error(config, monkeypatch, environment, error, message):
    tiny.Script([["<answer>Paris</answer><|im_end|>"]] * 4).install(monkeypatch)
    trainer = A2TGPOTrainer(
        tiny.model(), exact_match_reward, config(advantage_estimator="gigpo"), Dataset.from_list([{"answer": "Paris"}] * 8),
        processing_class=tiny.chat_tokenizer(), environment_factory=environment,
    )  # fmt: skip
    with pytest.raises(error, match=message):
        trainer.train()


def test_trls_loop_asks_no_environment(config):
    with pytest.raises(ValueError, match=r"tool_loop='trl' asks no environment for its state_key\(\)"):
        A2TGPOTrainer(
            tiny.model(), exact_match_reward, config(advantage_estimator="gigpo", tool_loop="trl"),
            Dataset.from_list([{"answer": "Paris"}] * 8), processing_class=tiny.chat_tokenizer(), environment_factory=Rooms,
        )  # fmt: skip
