"""Keys and values kept between turns: the same tokens as when everything is read again, and each token read once."""

import weakref

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

import tiny
from a2tgpo_trl.rollout import HistoryCache, history, history_obstacle

ARCHITECTURES = ["llama", "qwen3", "gemma", "gpt2"]
ENDS = [2, *range(320, 400)]  # many, so that random models end their turns at different lengths


def greedy(max_new_tokens=6, **options):
    options = {"do_sample": False, "eos_token_id": ENDS, "pad_token_id": 0, **options}
    return GenerationConfig(max_new_tokens=max_new_tokens, disable_compile=True, **options)


def padded(contexts, device="cpu"):
    width = max(map(len, contexts))
    ids = torch.tensor([[0] * (width - len(context)) + context for context in contexts])
    mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in contexts])
    return ids.to(device), mask.to(device)


def turns_of(output, width):
    """Up to the first end token, as TRL cuts them."""
    turns = []
    for row in output[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ENDS), len(row))
        turns.append(row[:end])
    return turns


class Player:
    """Plays turns with a history, and beside it each turn from the whole context."""

    def __init__(self, model, **options):
        self.model, self.config = model.eval(), greedy()
        self.history = HistoryCache(model, **options)
        self.widths = []

    def fed(self, **kwargs):
        self.widths.append(kwargs["input_ids"].size(1) - kwargs["past_key_values"].get_seq_length())
        return self.model.generate(**kwargs)

    def turn(self, rows, contexts, config=None):
        config = config or self.config
        ids, mask = padded(contexts, self.model.device)
        output = self.history.generate(
            self.fed, rows, contexts, input_ids=ids, attention_mask=mask, generation_config=config
        )
        assert torch.equal(output[:, : ids.size(1)], ids)
        turns = turns_of(output, ids.size(1))
        self.history.keep(turns)
        expected = turns_of(self.model.generate(ids, attention_mask=mask, generation_config=config), ids.size(1))
        assert turns == expected
        return turns


def random_tokens(generator, low, high):
    length = int(torch.randint(low, high + 1, (), generator=generator))
    return torch.randint(6, 320, (length,), generator=generator).tolist()


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_turns_as_from_the_whole_context(architecture, attention, share_prompts):
    same_turns(Player(tiny.model(architecture, attn_implementation=attention), share_prompts=share_prompts))


def same_turns(player):
    generator = torch.Generator().manual_seed(0)
    shared = random_tokens(generator, 9, 9)
    contexts = [shared, shared, random_tokens(generator, 1, 1), shared, random_tokens(generator, 30, 30)]
    alive = list(range(len(contexts)))
    lengths = set()
    for turn in range(5):
        turns = player.turn(alive, [contexts[row] for row in alive])
        for row, written in zip(alive, turns, strict=True):
            contexts[row] = contexts[row] + written + random_tokens(generator, 1, 25)
            lengths.add(len(written))
        alive = [row for row in alive if (row + turn) % 4]  # others wait for a tool, or are over
        alive = sorted({*alive, turn})
    assert len(lengths) > 1  # some turns ended before others


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
def test_obstacles(model, options, reason):
    built = tiny.model(model, attn_implementation="eager")
    assert reason in history_obstacle(built, greedy(**options))


def test_the_model_may_be_configured_without_a_cache():
    model = tiny.model()
    model.generation_config.use_cache = False
    assert "without a cache" in history_obstacle(model, greedy())
    assert history_obstacle(model, greedy(use_cache=True)) is None


def test_models_of_more_than_text_keep_state_of_their_own():
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]},
        ),
        vision_config=dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32),
    )  # fmt: skip
    assert "more than text" in history_obstacle(Qwen2_5_VLForConditionalGeneration(config), greedy())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_obstacle(architecture):
    model = tiny.model(architecture)
    assert history_obstacle(model, greedy()) is None
    assert DynamicCache(config=model.config).layers
