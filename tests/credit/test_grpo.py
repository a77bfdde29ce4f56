"""The estimator `"grpo"` is TRL's `GRPOTrainer`, bit for bit."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import tiny
from a2tgpo_trl.credit import GRPO
from a2tgpo_trl.signals.beliefs import BeliefScorer
from conftest import CHAT_ROWS, QUESTION, chat_correct, chat_rollouts, same, weights

TRL_RECIPE = dict(importance_sampling_level="token", epsilon=0.2, epsilon_high=0.25, loss_type="dapo")


WITHOUT_TURN_CREDIT = {
    "a2tgpo": dict(turn_advantage_coef=0.0, turn_clip_strength=0.0),
    "a2tgpo_stop": dict(turn_advantage_coef=0.0, turn_clip_strength=0.0),
    "trace": dict(turn_advantage_coef=0.0),
    "grpo": {},
}


@pytest.mark.parametrize("estimator", WITHOUT_TURN_CREDIT)
def test_without_turn_credit_it_is_grpo_bit_for_bit(build, config, estimator):
    chat = dict(
        processing_class=tiny.chat_tokenizer(), dataset=Dataset.from_list(CHAT_ROWS), reward=chat_correct,
        max_steps=4, num_iterations=2, temperature=0.9, beta=0.0, **TRL_RECIPE
    )  # fmt: skip
    ours = build(chat_rollouts(), advantage_estimator=estimator, **WITHOUT_TURN_CREDIT[estimator], **chat)
    theirs = build(chat_rollouts(), trainer=GRPOTrainer, cls=GRPOConfig, **chat)
    start = weights(ours)
    for trainer in (ours, theirs):
        torch.manual_seed(0)  # TRL shuffles the scored batch
        trainer.train()
    assert same(weights(ours), weights(theirs))
    assert not same(weights(ours), start)
    for key in ("loss", "grad_norm", "clip_ratio/region_mean", "entropy", "reward", "tools/call_frequency"):
        assert [log.get(key) for log in ours.state.log_history] == [log.get(key) for log in theirs.state.log_history]


@pytest.mark.parametrize("skip", [True, False])
def test_equal_rewards_are_the_same_to_grpo(build, skip):
    """Eight times 0.3 minus their mean leaves rounding, which `skip_empty_updates` takes away with either estimator."""
    options = dict(
        reward=lambda completions, **_: [0.3] * len(completions), num_generations=8, skip_empty_updates=skip
    )
    options |= dict(per_device_train_batch_size=4, max_steps=2, **TRL_RECIPE)
    ours = build(
        [["<answer>Paris</answer><|im_end|>"]] * 8, turn_advantage_coef=0.0, turn_clip_strength=0.0, **options
    )
    theirs = build([["<answer>Paris</answer><|im_end|>"]] * 8, advantage_estimator="grpo", **options)
    start = weights(ours)
    for trainer in (ours, theirs):
        torch.manual_seed(0)
        trainer.train()
    assert same(weights(ours), weights(theirs))
    assert same(weights(ours), start) == skip


def test_grpo_defaults_are_trls(config):
    args, theirs = config(advantage_estimator="grpo"), config(GRPOConfig)
    assert {name: getattr(args, name) for name in GRPO.defaults} == {
        name: getattr(theirs, name) for name in GRPO.defaults if name != "skip_empty_updates"
    } | {"skip_empty_updates": False}
    assert args.epsilon == theirs.epsilon and args.epsilon_high in (theirs.epsilon_high, theirs.epsilon)
    given = dict(loss_type="grpo", importance_sampling_level="turn", skip_empty_updates=True)
    args = config(advantage_estimator="grpo", **given)
    assert {name: getattr(args, name) for name in given} == given
    assert (args.epsilon, args.epsilon_high) == (3e-3, 4e-3)  # of the level that was given


def test_grpo_by_itself_is_trls_bit_for_bit(build):
    """Sampled, with turns of different lengths (the loss type), off-policy (the clip range), and batches without anything to
    learn after others (Adam's momentum)."""
    options = dict(
        processing_class=tiny.chat_tokenizer(), dataset=Dataset.from_list(CHAT_ROWS), tools=[], max_steps=6,
        num_iterations=2, max_completion_length=12, temperature=1.2,
    )  # fmt: skip
    trained = []
    for classes in ({}, dict(trainer=GRPOTrainer, cls=GRPOConfig)):
        calls = []

        def reward(completions, calls=calls, **kwargs):
            calls.append(completions)
            return [float(len(c[0]["content"])) if len(calls) == 1 else 1.0 for c in completions]

        estimator = {} if classes else dict(advantage_estimator="grpo")
        model = tiny.model()
        with torch.no_grad():
            model.get_output_embeddings().weight[model.config.eos_token_id] *= 4  # ends some completions early
        trainer = build(None, model=model, reward=reward, **estimator, **classes, **options)
        torch.manual_seed(0)
        trainer.train()
        trained.append(trainer)
    ours, theirs = trained
    assert same(weights(ours), weights(theirs))
    assert [log.get("grad_norm", 0.0) for log in theirs.state.log_history][-2] == 0.0
    assert ours.state.log_history[0]["completions/min_length"] < ours.state.log_history[0]["completions/max_length"]


def test_grpo_estimator_measures_nothing_and_adds_nothing(score, config, monkeypatch):
    monkeypatch.setattr(BeliefScorer, "measure", lambda *a, **k: pytest.fail("no belief is needed"))
    batch, _ = score(advantage_estimator="grpo")
    assert batch["advantages"].shape == (4,)
    assert not {"clip_scale", "information_gain"} & set(batch)


def test_grpo_estimator_needs_no_answers(build):
    build(
        advantage_estimator="grpo",
        dataset=Dataset.from_list([{"prompt": QUESTION}] * 8),
        reward=lambda completions, **k: [1.0] * 4,
    ).train()
