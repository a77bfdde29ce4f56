"""Every backend writes the same rollouts as `model.generate`, token for token, in float32."""

import pytest
import torch

import chance
import tiny
from chain import CALL, LONG, chain
from on_backends import CHAIN_ROWS, OTHERS, needs_vllm, played

OBSERVED = "\n<result>Lyon is in France.</result>\n"
ANSWER = "Paris.<|im_end|>"


class Library:
    """An environment that counts its looks."""

    def reset(self, **row) -> None:
        self.looks = 0

    def look(self, key: int) -> str:
        """
        Look something up.

        Args:
            key: Where to look.
        """
        self.looks += 1
        return f"{self.looks}: {chance.look(key)}"


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_turn_tokens": 7},
        {"max_completion_length": 50},
        {"tools": (), "environments": Library},
        {"lockstep": True},
    ],
    ids=lambda options: next(iter(options), "defaults"),
)
def test_chat_rollouts(by_chance, backend, options):
    theirs = played(by_chance("transformers", **options), chance.rows())
    ours = played(by_chance(backend, **options), chance.rows())
    for ours_value, value in zip(ours, theirs, strict=True):
        assert ours_value == value
    assert any(0 in mask for mask in ours[2])


@pytest.mark.parametrize("backend", OTHERS)
def test_tag_rollouts(by_chain, backend):
    trainer = by_chain(backend, max_completion_length=60)
    _, ids, masks, _ = played(trainer, CHAIN_ROWS)
    assert trainer._tokenizer.batch_decode(ids) == [
        CALL + OBSERVED + ANSWER,
        LONG + CALL + OBSERVED + ANSWER,
        ANSWER,
        "yen" * 60,
    ]
    written = [[token for token, kept in zip(*row, strict=True) if kept] for row in zip(ids, masks, strict=True)]
    assert trainer._tokenizer.batch_decode(written) == [CALL + ANSWER, LONG + CALL + ANSWER, ANSWER, "yen" * 60]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("special", ["</search>", "search"], ids=["is", "contains"])
def test_a_closing_tag_with_a_special_token_ends_the_turn(by_chain, backend, special):
    tokenizer = tiny.tokenizer()
    tokens = ["</", special, ">"] if special == "search" else [special]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", special]})
    # After the call the chain would write `Lyon` and the call again
    paths = [["!", "<", "search", ">", "Lyon", *tokens], [tokens[-1], "Lyon"], ["\n", "Paris", ".", "<|im_end|>"]]
    trainer = by_chain(backend, tokenizer=tokenizer, model=chain(tokenizer, paths), max_completion_length=80)
    _, ids, _, _ = played(trainer, CHAIN_ROWS[:1])
    assert trainer._tokenizer.decode(ids[0]) == CALL + OBSERVED + ANSWER


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, "Paris</answer>"),
        ({"answer_stop": ""}, "Paris</answer>" + "+" * 36),
        ({"answer_stop": "+++"}, "Paris</answer>+++"),
    ],
    ids=["default", "none", "given"],
)
def test_the_answer_ends_the_rollout(by_chain, backend, options, written):
    tokenizer = tiny.tokenizer()
    model = chain(tokenizer, [["%", "Paris", "</", "answer", ">", "+", "+"]])
    trainer = by_chain(backend, tokenizer=tokenizer, model=model, max_completion_length=40, **options)
    _, ids, _, _ = played(trainer, [{"prompt": "%", "answer": "Paris"}])
    assert trainer._tokenizer.decode(ids[0]) == written


@needs_vllm
def test_stop_strings_of_the_user(by_chain):
    trainer = by_chain("vllm", generation_kwargs={"stop": ["</search"]}, max_completion_length=60)
    _, ids, _, _ = played(trainer, CHAIN_ROWS[:1])
    assert trainer._tokenizer.decode(ids[0]) == CALL.removesuffix(">")


@needs_vllm
def test_rollouts_end_with_the_context_of_the_engine(small, by_chance):
    context = 640  # the longest prompt has 600 tokens
    theirs = played(by_chance("transformers", model=small(max_position_embeddings=context)), chance.rows())
    ours = played(by_chance("vllm", vllm_max_model_length=context), chance.rows())
    assert ours == theirs
    assert max(len(prompt) + len(ids) for prompt, ids in zip(*ours[:2], strict=True)) == context


@needs_vllm
def test_a_prompt_beyond_the_context_of_the_engine_names_the_option(by_chance):
    trainer = by_chance("vllm", vllm_max_model_length=500)
    with pytest.raises(
        ValueError,
        match="A prompt has 600 tokens, and vllm_max_model_length is 500 for prompt and completion: raise it",
    ):
        trainer.play(chance.rows())


@pytest.mark.parametrize("backend", ["transformers", *OTHERS])
def test_trees(by_chance, backend):
    """Leaves that begin as others did; surprisals are those of TRL's forward, where the backend tells log-probabilities."""
    tells = backend != "continuous batching"
    choice = {"tree_choice": "surprisal" if tells else "random"}
    shape = {"num_generations": 4, "per_device_train_batch_size": 8, "steps_per_generation": 1}
    trainer = by_chance(backend, tree_chains=2, tree_expansions=1, **choice, **shape)
    trainer.model.train()
    batch = trainer._roll_out([row for row in chance.rows()[:4:2] for _ in range(4)])
    paths = [tuple(turn.node for turn in rollout.turns) for rollout in batch.rollouts]
    assert [rollout.num_shared_turns is None for rollout in batch.rollouts] == [True, True, False, False] * 2
    assert len(set(paths[:4])) == len(set(paths[4:])) == 4
    tensors = batch.tensors
    for i, rollout in enumerate(batch.rollouts):
        length, kept = rollout.completion_length, rollout.num_shared_turns or 0
        assert tensors["completion_ids"][i, :length].tolist() == rollout.completion_ids
        sources = batch.rollouts[i // 4 * 4 : i]
        assert not kept or any(
            [t.ids for t in other.turns[:kept]] == [t.ids for t in rollout.turns[:kept]] for other in sources
        )
    ids, mask = (
        torch.cat([tensors[f"prompt_{part}"], tensors[f"completion_{part}"]], dim=1) for part in ("ids", "mask")
    )
    with torch.no_grad():
        logps, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model.eval(), ids, mask, tensors["completion_ids"].size(1)
        )
    for i, rollout in enumerate(batch.rollouts):
        for k, turn in enumerate(rollout.turns):
            expected = -logps[i][tensors["turn_ids"][i] == k].mean().item()
            assert (turn.surprisal == pytest.approx(expected, abs=1e-3)) if tells else turn.surprisal is None


@pytest.mark.parametrize("tools", [(), (chance.look,)], ids=["no tools", "tools"])
def test_turns_that_continuous_batching_cannot_write_are_an_error(by_chance, tools):
    settings = {
        "num_blocks": 16,
        "page_size": 32,
        "max_batch_tokens": 64,
    }  # 512 tokens, of which prompts take up to 600
    trainer = by_chance("continuous batching", tools=tools, transformers_continuous_batching_config=settings)
    rows = [{**row, "prompt": [{"role": "user", "content": "Where? " * 200}]} for row in chance.rows()]
    with pytest.raises(RuntimeError, match="Continuous batching wrote 0 of 12 turns: No requests can be scheduled"):
        trainer.play(rows)


@pytest.mark.parametrize("backend", OTHERS)
def test_gains_are_those_of_the_transformers_backend(by_chance, backend):
    options = {"advantage_estimator": "a2tgpo", "per_device_eval_batch_size": 24}
    theirs = by_chance("transformers", **options).play(chance.rows(), greedy=True, num_generations=2)
    trainer = by_chance(backend, **options)
    assert trainer.signals["beliefs"]._shares_forward()
    ours = trainer.play(chance.rows(), greedy=True, num_generations=2)
    assert [rollout.completion for rollout in ours] == [rollout.completion for rollout in theirs]
    turns, others = ([turn for rollout in played for turn in rollout.turns] for played in (ours, theirs))
    for column in ("information_gain", "advantage", "clip_scale"):
        assert [turn.credit[column] for turn in turns] == pytest.approx([t.credit[column] for t in others], abs=1e-3)
    assert any(turn.credit["information_gain"] for turn in turns)


@needs_vllm
def test_sampled_log_probabilities_are_those_of_the_tokens_kept(by_chance):
    trainer = by_chance("vllm", max_completion_length=60, max_turn_tokens=9)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(chance.rows())
    written = (batch["completion_mask"] * batch["tool_mask"]).bool()
    sampled, old = batch["sampling_per_token_logps"], batch["old_per_token_logps"]
    torch.testing.assert_close(sampled[written], old[written], atol=1e-3, rtol=1e-3)
    assert not sampled[~written].any()
    assert (~written & batch["completion_mask"].bool()).any()  # there are observations
    assert sampled[written].std() > 0.5  # no two tokens could be exchanged unnoticed
    ratio = batch["importance_sampling_ratio"]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-2, rtol=0)


@needs_vllm
def test_sleep_mode_is_refused_by_the_engine_on_a_cpu(by_chance):
    with pytest.raises(ValueError, match="Sleep mode is not supported on current platform"):
        by_chance("vllm", vllm_enable_sleep_mode=True)
