"""Keys and values kept between turns: the same tokens as when everything is read again, and each token read once."""

import weakref

import pytest
import torch
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

import tiny
from a2tgpo_trl.rollout import HistoryCache, why_no_history
from a2tgpo_trl.rollout.generation import history
from histories import Player, greedy, padded, same_turns, turns_of

ARCHITECTURES = ["llama", "qwen3", "gemma", "gpt2"]


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_turns_as_from_the_whole_context(architecture, attention, share_prompts):
    same_turns(Player(tiny.model(architecture, attn_implementation=attention), share_prompts=share_prompts))


def test_each_token_is_read_once():
    player = Player(tiny.model())
    contexts = [[7, 8, 9], [10, 11, 12, 13, 14]]
    for _ in range(4):
        turns = player.turn([0, 1], contexts)
        read = [context + turn for context, turn in zip(contexts, turns, strict=True)]
        contexts = [[*ids, 20, 21, 22] for ids in read]
    written = sum(map(len, read))
    assert written - len(read) - 1 <= player.history.tokens_fed <= written
    assert player.widths[0] == 5
    assert max(player.widths[1:]) <= 3 + 1  # an observation, and the token written last


def test_a_prompt_in_common_is_read_once():
    player = Player(tiny.model())
    prompt = list(range(10, 30))
    player.turn([0, 1, 2, 3], [prompt] * 4, greedy(1))
    assert player.history.tokens_fed == 19 + 4  # all but the last token once, the last one in each row
    assert player.widths == [1]
    alone = Player(tiny.model(), share_prompts=False)
    alone.turn([0, 1, 2, 3], [prompt] * 4, greedy(1))
    assert alone.history.tokens_fed == 80
    assert alone.widths == [20]


def test_two_prompts_are_read_once_each():
    """A rollout that were given the other prompt's keys and values would read its own again: no other token, but more work."""
    player = Player(tiny.model())
    first, second = list(range(10, 30)), list(range(40, 55))
    player.turn([0, 1, 2, 3], [first, first, second, second], greedy(1))
    assert player.history.tokens_fed == 19 + 14 + 4
    assert player.widths == [1]


def test_what_was_cut_off_a_turn_is_forgotten():
    player = Player(tiny.model())
    (turn,) = player.turn([0], [[7, 8, 9]], greedy(6, eos_token_id=None))
    player.history.clear()
    ids, mask = padded([[7, 8, 9]])
    player.history.generate(
        player.fed,
        [0],
        [[7, 8, 9]],
        input_ids=ids,
        attention_mask=mask,
        generation_config=greedy(6, eos_token_id=None),
    )
    player.history.keep([turn[:2]])  # a stop string ended it earlier
    player.widths.clear()
    player.turn([0], [[7, 8, 9, *turn[:2], 30, 31]])
    assert player.widths == [2]


@pytest.mark.parametrize("context", [[7, 8, 30, 31], [7, 8], [30], [7, 8, 9]])
def test_another_context_is_read_from_where_it_differs(context):
    player = Player(tiny.model())
    player.turn([0], [[7, 8, 9]], greedy(4))
    player.turn([0], [context], greedy(4))


def test_dropped_rollouts_are_read_again():
    player = Player(tiny.model())
    (turn,) = player.turn([0], [[7, 8, 9]])
    player.history.drop([0, 5])
    player.turn([0], [[7, 8, 9, *turn, 30]])
    assert player.widths == [3, 3 + len(turn) + 1]


def test_rows_of_nobody_are_not_kept():
    player = Player(tiny.model())
    player.turn([0, None], [[7, 8, 9], [2]])
    assert list(player.history._histories) == [0]


def test_nothing_to_keep_when_another_backend_generated():
    history = HistoryCache(tiny.model())
    history.keep([[1, 2]])
    assert history.tokens_fed == 0


@pytest.mark.parametrize("share_prompts", [True, False])
def test_a_generate_that_fills_no_cache_reads_everything_again(share_prompts):
    """A wrapper around `generate`, a mock or another backend under it may do without the cache that it gets."""
    player = Player(tiny.model(), share_prompts=share_prompts)

    def uncached(past_key_values=None, **kwargs):
        return player.model.generate(**kwargs, use_cache=False)

    player.fed = uncached
    prompt = list(range(10, 20))
    contexts = [prompt, prompt, [7, 8, 9]]
    read = 0
    for _ in range(3):
        turns = player.turn([0, 1, 2], contexts)
        read += sum(map(len, contexts)) + sum(len(turn) - 1 for turn in turns)
        contexts = [
            [*context, *turn, 30 + i, 40] for i, (context, turn) in enumerate(zip(contexts, turns, strict=True))
        ]
    assert not player.history._histories
    shared = len(prompt) - 1 + 2 if share_prompts else 0  # before the first turn, where a cache could have kept them
    assert player.history.tokens_fed == read + shared


def test_a_model_that_fills_no_cache_reads_everything_again():
    """As transformers' models do that train with gradient checkpointing."""
    player = Player(tiny.model())
    player.model.gradient_checkpointing_enable()
    player.model.train()
    turns = player.turn([0, 1], [[7, 8, 9]] * 2)
    player.turn([0, 1], [[7, 8, 9, *turn, 30 + i] for i, turn in enumerate(turns)])
    assert not player.history._histories


def test_padding_token_that_ends_sequences():
    model = tiny.model()
    player = Player(model)
    player.config = greedy(8, pad_token_id=2)
    turns = player.turn([0, 1, 2], [[7, 8, 9], [10], [11] * 12])
    player.turn([0, 1, 2], [[7, 8, 9, *turns[0], 40], [10, *turns[1], 41, 42, 43], [11] * 12 + turns[2] + [44]])


def test_repetition_penalty_sees_the_same_tokens():
    player = Player(tiny.model())
    player.config = greedy(8, repetition_penalty=1.7, pad_token_id=2)
    turns = player.turn([0, 1], [[7, 8, 9], [10]])
    player.history.drop([1])  # beside a history there is padding
    # Without padding in the reference: row by row
    contexts = [[7, 8, 9, *turns[0], 40], [10, *turns[1], 41, 42, 43]]
    ids, mask = padded(contexts)
    output = player.history.generate(
        player.fed, [0, 1], contexts, input_ids=ids, attention_mask=mask, generation_config=player.config
    )
    for row, context in enumerate(contexts):
        alone = player.model.generate(torch.tensor([context]), generation_config=player.config)
        assert turns_of(output, ids.size(1))[row] == turns_of(alone, len(context))[0]


def test_memory_of_finished_batches_is_given_back():
    player = Player(tiny.model())
    player.turn([0, 1], [[7, 8, 9], [10, 11]])
    player.history.drop([0, 1])
    assert not player.history._histories
    assert player.history._last is None


def test_a_batch_is_given_back_layer_by_layer(monkeypatch):
    """Also by the `DynamicLayer` of transformers 5.17, whose `reset` fills its tensors with zeros."""
    monkeypatch.setattr(DynamicLayer, "reset", CacheLayerMixin.reset)
    cache, held, most = DynamicCache(config=tiny.model().config), [], []
    for number, layer in enumerate(cache.layers):
        states = torch.full((2, 1, 6, 4), float(number))
        layer.update(states, states)
        held.append(weakref.ref(layer.keys))

    class Places(torch.Tensor):
        """Looks who is there at each copy."""

        def to(self, *args, **kwargs):
            most.append(sum(keys() is not None for keys in held))
            return self.as_subclass(torch.Tensor)

    del layer, states
    places = torch.arange(3).as_subclass(Places)
    histories = history._take(cache, [(0, [5, 6, 7], places)])
    assert most == list(range(len(held), 0, -1)) and len(held) > 1
    assert [keys[0, 0, 0].item() for keys, _ in histories[0].layers] == list(range(len(held)))
    assert not any(keys() is not None for keys in held)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("gemma2", {}, "sliding_attention"),
        ("llama", {"cache_implementation": "static"}, "static"),
        ("llama", {"use_cache": False}, "without a cache"),
        ("llama", {"num_beams": 2}, "beam"),
    ],
)
def test_reasons(model, options, reason):
    built = tiny.model(model, attn_implementation="eager")
    assert reason in why_no_history(built, greedy(**options))


def test_the_model_may_be_configured_without_a_cache():
    model = tiny.model()
    model.generation_config.use_cache = False
    assert "without a cache" in why_no_history(model, greedy())
    assert why_no_history(model, greedy(use_cache=True)) is None


def test_models_of_more_than_text_keep_state_of_their_own():
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]},
        ),
        vision_config=dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32),
    )  # fmt: skip
    assert "more than text" in why_no_history(Qwen2_5_VLForConditionalGeneration(config), greedy())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_speaks_against(architecture):
    model = tiny.model(architecture)
    assert why_no_history(model, greedy()) is None
    assert DynamicCache(config=model.config).layers


def test_a_fork_reads_what_is_its_own():
    player = Player(tiny.model())
    prompt = [7, 8, 9, 10, 11]
    (turn,) = player.turn([0], [prompt])
    context = [*prompt, *turn, 30, 31, 32]
    player.turn([0], [context])
    player.history.fork(0, 5, len(context) - 1)
    player.history.fork(0, 6, len(prompt) - 1)
    player.history.fork(9, 7, 4)  # nothing is kept of it
    fed = player.history.tokens_fed
    # The same context, another one of the same beginning, the prompt, and one that is read as a whole
    turns = player.turn([5, 6, 7], [context, prompt, [40, 41]])
    assert player.widths[-1] == 2  # the last token of the forks, and two of the other
    new = player.history.tokens_fed - fed - (1 + 1 + 2)
    assert sum(len(turn) - 1 for turn in turns) <= new <= sum(map(len, turns))  # a token written last may be unread
    player.turn([0, 5], [[*context, 33], [*context, *turns[0], 34]])  # the source goes on, too
