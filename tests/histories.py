"""Turns played with a history, and beside it each from its whole context."""

import torch
from transformers import GenerationConfig

from a2tgpo_trl.rollout import HistoryCache

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
