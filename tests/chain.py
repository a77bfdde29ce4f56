"""A model that writes what a test wants: each token depends on the one before, with near certainty."""

from itertools import pairwise

import torch

import tiny

CALL = "<search>Lyon</search>"
LONG = "abcdefghijklmnopqrstuvw"

# What each token is followed by. `>` leads back to `Lyon`, so that only a stop string ends `<search>Lyon</search>`
PATHS = [
    ["!", "<", "search", ">", "Lyon", "</", "search"],
    ["?", *LONG, "<"],
    ["#", "Paris", ".", "<|im_end|>"],
    ["\n", "Paris"],  # after an observation
    ["@", "yen", "yen"],  # for ever
    ["&", "(", "E", ")", "+", "+"],
]
PROMPTS = ["!", "?", "#", "@"]


def chain(tokenizer, paths=PATHS):
    """A model whose next token depends on the last one only, with near certainty: a chain through `paths`."""
    width = 400
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64}  # of a size that all backends take
    model = tiny.model(hidden_size=width, num_hidden_layers=1, **heads)
    layer = model.model.layers[0]
    follow = torch.zeros(width, width)
    for path in paths:
        ids = [tokenizer.vocab[token.replace("\n", "Ċ")] for token in path]
        for last, following in pairwise(ids):
            follow[following, last] = 10.0
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        model.lm_head.weight.copy_(follow)
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return model
