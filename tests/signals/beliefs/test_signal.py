"""What the options of beliefs make of them, in a trainer: who is asked, about which aliases, and from where gains are measured."""

import math

import pytest
import torch
from datasets import Dataset

import tiny
from a2tgpo_trl.signals.beliefs import BeliefScorer, make_probe
from conftest import CHAT_ROWS, GROUP, QUESTION, chat_correct, chat_rollouts, same, weights
from scoring import TEMPLATE, naive_belief

ALIASES = ["Paris", "Lutetia", "paris ", "Ville Lumière"]


def lora(**options):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)


def tags(build, **options):
    rows = [{"prompt": QUESTION, "answer": ALIASES}] * 8
    return build(GROUP, dataset=Dataset.from_list(rows), **options), rows[:4]


def chat(build, **options):
    rows = [row | {"answer": ALIASES} for row in CHAT_ROWS]
    options |= {"processing_class": tiny.chat_tokenizer(), "reward": chat_correct}
    return build(chat_rollouts(), dataset=Dataset.from_list(rows), **options), rows[:4]


def roll_out(trainer, rows):
    trainer.model.train()
    return trainer._roll_out([dict(row) for row in rows])


def naive_tables(model, rollouts, join):
    """Beliefs at prompts and after observations, and those before observations, one unpadded float64 forward for each alias."""
    model = model.eval().double()
    probes = [make_probe(tiny.tokenizer(), TEMPLATE, alias) for alias in (ALIASES[0], ALIASES[1], ALIASES[3])]
    after, before = [], []

    def belief(context):
        return join([naive_belief(model, context, probe) for probe in probes])

    for rollout in rollouts:
        context = list(rollout.prompt_ids)
        after.append([belief(context)])
        before.append([])
        for turn in rollout.turns:
            if turn.observation_ids:
                before[-1].append(belief(context + turn.ids))
                context += turn.ids + turn.observation_ids
                after[-1].append(belief(context))
    return after, before


def agree(actual, expected):
    for row, values in zip(actual.tolist(), expected, strict=True):
        assert row[: len(values)] == pytest.approx(values, abs=1e-4)
        assert all(map(math.isnan, row[len(values) :]))


JOINS = {
    "first": lambda beliefs: beliefs[0],
    "max": max,
    "logsumexp": lambda beliefs: math.log(sum(map(math.exp, beliefs))),
}


@pytest.mark.parametrize("setting", [tags, chat])
@pytest.mark.parametrize("shared", [True, False], ids=["shared forward", "own forwards"])
@pytest.mark.parametrize("aliases", JOINS)
def test_aliases_and_both_starts_against_the_naive_loop(build, setting, shared, aliases):
    updates = {} if shared else {"gradient_accumulation_steps": 2}
    trainer, rows = setting(build, answer_aliases=aliases, gain_from="turn_end", **updates)
    batch = roll_out(trainer, rows)
    assert (batch.shared_forward is not None) == shared
    beliefs, before = batch.turns.signals["beliefs"], batch.turns.signals["beliefs_before_observation"]
    expected = naive_tables(tiny.model(), batch.rollouts, JOINS[aliases])
    agree(beliefs, expected[0])
    agree(before, expected[1])
    assert torch.equal(batch.tensors["information_gain"].isnan(), before.isnan())
    torch.testing.assert_close(batch.tensors["information_gain"], beliefs[:, 1:] - before, equal_nan=True)
    plain, rows = setting(build, answer_aliases=aliases, **updates)
    signals = roll_out(plain, rows).turns.signals
    assert signals.keys() == {"beliefs"}
    torch.testing.assert_close(signals["beliefs"], beliefs, atol=1e-5, rtol=0, equal_nan=True)


def test_probabilities_are_taken_of_what_is_joined(build):
    logprob, rows = tags(build, answer_aliases="logsumexp")
    prob, _ = tags(build, answer_aliases="logsumexp", belief_measure="prob")
    left, right = (roll_out(trainer, rows).turns.signals["beliefs"] for trainer in (logprob, prob))
    torch.testing.assert_close(left.exp(), right, equal_nan=True)


# ---- where gains are measured from


def reading_model():
    """A Llama that expects "Paris" if it has read it, wherever, and else does not: one head looks for it, one-hot all through."""
    size, tokenizer = 400, tiny.tokenizer()
    model = tiny.model(
        hidden_size=size, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=size
    )
    attention, identity = model.model.layers[0].self_attn, torch.eye(size)
    answer, *spellings = tokenizer.convert_tokens_to_ids(["Paris", "Paris", "ĠParis"])
    slowest = size // 2 - 1  # the pair of dimensions that rotary positions hardly turn
    with torch.no_grad():
        for module in (attention.q_proj, attention.k_proj, attention.v_proj, model.model.layers[0].mlp.down_proj):
            module.weight.zero_()
        attention.q_proj.weight[slowest] = 1.0
        attention.k_proj.weight[slowest, spellings] = 1.0
        attention.v_proj.weight[answer, spellings] = 1.0
        for module in (model.model.embed_tokens, attention.o_proj, model.lm_head):
            module.weight.copy_(identity)
    return model


def gains_of_queries(build, rows, **options):
    """Of a query that holds the answer and finds nothing, and of one that finds the answer."""
    rollouts = [
        ["<search>Paris</search>", "no answer<|im_end|>"],
        ["<search>capital of France</search>", "<answer>Paris</answer><|im_end|>"],
    ] * 2
    trainer = build(rollouts, model=reading_model(), **options)
    batch = roll_out(trainer, rows[:4])
    return batch.tensors["information_gain"][:2, 0].tolist(), batch


@pytest.mark.parametrize("updates", [{}, {"gradient_accumulation_steps": 2}], ids=["shared forward", "own forwards"])
def test_an_answer_in_the_query_earns_nothing_from_the_turns_end(build, rows, updates):
    (leaked, found), _ = gains_of_queries(build, rows, **updates)
    (guarded, still_found), batch = gains_of_queries(build, rows, gain_from="turn_end", **updates)
    assert leaked > 1 and found > 1 and still_found > 1
    assert guarded == pytest.approx(0, abs=1e-3)
    assert batch.turns.max_turns == 2


def test_records_tell_what_gains_were_measured_from(build, rows):
    trainer, rows = tags(build, gain_from="turn_end", per_device_eval_batch_size=4)
    batch = roll_out(trainer, rows)
    before = batch.turns.signals["beliefs_before_observation"]
    for i, rollout in enumerate(batch.rollouts):
        for k, turn in enumerate(rollout.turns):
            if not turn.observation_ids:
                assert turn.credit["belief_before"] is None and turn.credit["information_gain"] is None
                continue
            assert turn.credit["belief_before"] == before[i, k].item()
            assert turn.credit["information_gain"] == pytest.approx(
                turn.credit["belief_after"] - turn.credit["belief_before"]
            )
    metrics = trainer._metrics["train"]
    assert metrics["belief/first"][0] == pytest.approx(batch.turns.signals["beliefs"][:, 0].mean().item())
    gains = batch.tensors["information_gain"]
    assert metrics["information_gain/mean"][0] == pytest.approx(gains.nanmean().item(), abs=1e-6)


@pytest.mark.parametrize("estimator", ["a2tgpo", "igpo", "a2tgpo_stop", "trace"])
@pytest.mark.parametrize("options", [{"gain_from": "turn_end"}, {"answer_aliases": "max"}], ids=str)
def test_every_method_that_reads_beliefs_has_the_options(build, estimator, options):
    trainers = [tags(build, advantage_estimator=estimator, **chosen) for chosen in ({}, options)]
    plain, chosen = (roll_out(trainer, rows).tensors["advantages"] for trainer, rows in trainers)
    assert plain.shape == chosen.shape and not torch.equal(plain, chosen)


# ---- who is asked


def whole_model(tmp_path, beta):
    tiny.model().save_pretrained(tmp_path / "model")
    return dict(model=str(tmp_path / "model"), beta=beta)


def trained_adapter(tmp_path, beta):
    """TRL keeps a frozen copy of it where `beta` is not 0."""
    import peft

    torch.manual_seed(0)
    return dict(model=peft.get_peft_model(tiny.model(), lora(init_lora_weights=False)), beta=beta)


def new_adapter(tmp_path, beta):
    return dict(peft_config=lora(), beta=beta)


def reference_of(setting, beta):
    """What the reference is at the beginning."""
    if setting is not trained_adapter or beta == 0:
        return tiny.model()
    return trained_adapter(None, beta)["model"].merge_and_unload()


REFERENCES = [
    (new_adapter, 0.0),
    (new_adapter, 0.1),
    (trained_adapter, 0.0),
    (trained_adapter, 0.1),
    (whole_model, 0.1),
]


@pytest.mark.parametrize("updates", [{}, {"gradient_accumulation_steps": 2}], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize(("setting", "beta"), REFERENCES)
def test_a_reference_does_not_move(build, tmp_path, monkeypatch, setting, beta, updates):
    pytest.importorskip("peft")
    trainer, rows = tags(build, belief_model="reference", learning_rate=0.05, **updates, **setting(tmp_path, beta))
    start = weights(trainer)
    before = roll_out(trainer, rows)
    assert (before.shared_forward is not None) == (beta != 0)  # TRL's reference forward scores beliefs too
    agree(
        before.turns.signals["beliefs"], naive_tables(reference_of(setting, beta), before.rollouts, JOINS["first"])[0]
    )
    trainer.train()
    after = roll_out(trainer, rows)
    trained = weights(trainer)
    frozen = [name for name in start if setting is not whole_model and ".default." not in name]
    assert not same(start, trained) and all(torch.equal(start[name], trained[name]) for name in frozen)
    kept = after.turns.signals["beliefs"]
    torch.testing.assert_close(kept, before.turns.signals["beliefs"], atol=0, rtol=0, equal_nan=True)
    probe = make_probe(tiny.tokenizer(), TEMPLATE, ALIASES[0])
    policy = naive_belief(trainer.model.eval(), after.rollouts[0].prompt_ids, probe)
    assert abs(policy - kept[0, 0].item()) > 1e-3


def test_the_policy_is_itself_again_after_its_reference_was_asked(build, tmp_path):
    pytest.importorskip("peft")
    for beta in (0.0, 0.1):
        trainer, rows = tags(build, belief_model="reference", **trained_adapter(tmp_path, beta))
        roll_out(trainer, rows)
        assert trainer.model.active_adapter == "default" and trainer.model.get_model_status().enabled
        trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
        assert trainable and all(".default." in name for name in trainable)
        assert trainer.model.training


def test_the_reference_in_chats_and_in_play(build, tmp_path):
    trainer, rows = chat(
        build, belief_model="reference", peft_config=lora(init_lora_weights=False), per_device_eval_batch_size=4
    )
    batch = roll_out(trainer, rows)
    agree(batch.turns.signals["beliefs"], naive_tables(tiny.model(), batch.rollouts, JOINS["first"])[0])
    played = trainer.play(rows[:1], num_generations=4)
    for rollout, mine in zip(batch.rollouts, played, strict=True):
        credit, again = ([turn.credit["belief_after"] for turn in r.turns] for r in (rollout, mine))
        assert again == [value if value is None else pytest.approx(value, abs=1e-5) for value in credit]


def test_with_dropout_a_reference_is_asked_in_forwards_of_its_own(build, monkeypatch):
    monkeypatch.setattr(BeliefScorer, "share_forward", lambda *args: pytest.fail("dropout is on"))
    trainer, rows = tags(build, belief_model="reference", peft_config=lora(lora_dropout=0.3), beta=0.1)
    batch = roll_out(trainer, rows)
    agree(batch.turns.signals["beliefs"], naive_tables(tiny.model(), batch.rollouts, JOINS["first"])[0])


def test_no_reference_is_an_error_that_says_what_makes_one(build, config):
    with pytest.raises(ValueError, match=r"belief_model='reference' asks.*beta=0\.0.*Set beta above 0.*peft_config"):
        build(belief_model="reference")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(belief_model="x"), "belief_model must be one of 'policy', 'reference', got 'x'"),
        (dict(answer_aliases="mean"), "answer_aliases must be one of 'first', 'max', 'logsumexp', got 'mean'"),
        (dict(gain_from="prompt"), "gain_from must be one of 'turn_start', 'turn_end', got 'prompt'"),
        (dict(advantage_estimator="grpo", belief_model="reference"), "belief_model='reference' has no effect"),
        (dict(advantage_estimator="gigpo", answer_aliases="max"), "answer_aliases='max' has no effect"),
        (dict(advantage_estimator="gtpo", gain_from="turn_end"), "gain_from='turn_end' has no effect"),
        (
            dict(advantage_estimator="trace", answer_aliases="logsumexp"),
            "answer_aliases='logsumexp' adds probabilities, whose logarithm may lie above 0",
        ),
    ],
)
def test_bad_options(config, options, message):
    with pytest.raises(ValueError) as error:
        config(**options)
    assert message in str(error.value)
