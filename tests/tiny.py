"""Tiny models, a byte-level tokenizer and scripted generations: everything the tests need, made on the spot."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from trl.chat_template_utils import qwen2_5_chat_template
from trl.trainer.grpo_trainer import GRPOTrainer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "Question: What is the capital of the country where Lyon is? <search>Lyon</search>\n<result>Lyon is in France.",
    "</result>\n<search>capital of France</search> <answer>Paris</answer> 12345 67890 é à ü 東京 大阪 search result answer",
    "The capital of France is Paris. The currency of Japan is the yen. user assistant system tool_call tool_response",
] * 4


@cache
def _backend() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens; `<|im_end|>` ends a sequence, `<|endoftext|>` pads."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
    )


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The same with Qwen2.5's template, which renders tool calls and which TRL can parse."""
    return tokenizer(qwen2_5_chat_template)


_SHAPE = dict(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=1024,
    bos_token_id=None,
    eos_token_id=2,
    pad_token_id=0,
)
CONFIGS = {
    "llama": lambda **kw: LlamaConfig(**{**_SHAPE, **kw}),
    "qwen3": lambda **kw: Qwen3Config(**{**_SHAPE, **kw}),
    "gemma": lambda **kw: GemmaConfig(**{**_SHAPE, **kw}),
    "gemma2": lambda **kw: Gemma2Config(**{**_SHAPE, "sliding_window": 8, **kw}),
    "gpt2": lambda **kw: GPT2Config(
        **{**dict(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=1024, eos_token_id=2), **kw}
    ),
}


def model(architecture: str = "llama", seed: int = 0, attn_implementation: str = "sdpa", **config):
    """A random model of two layers in float32, the same for the same arguments."""
    torch.manual_seed(seed)
    config.setdefault("dtype", torch.float32)
    built = AutoModelForCausalLM.from_config(CONFIGS[architecture](**config), attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)  # sharper than at initialisation, so that beliefs differ between contexts
    return built


class Script:
    """
    Generations to play instead of sampling: for each completion of a batch the texts of its turns.

    A text is tokenised on its own; write `<|im_end|>` where the model is to stop. The first call of a batch takes the
    first turn of every row; later ones hold the rows that go on, in their order, and are found by how they began.
    """

    def __init__(self, rollouts: list[list[str]]):
        self.rollouts = rollouts
        self.calls: list[list[list[int]]] = []
        self._written: list[list[int]] = [[] for _ in rollouts]
        self._turn = [0] * len(rollouts)

    def install(self, monkeypatch, backend=GRPOTrainer) -> "Script":
        def generate(trainer, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
            return self.write(trainer._tokenizer, prompt_ids), None

        monkeypatch.setattr(backend, "_generate_single_turn", generate)
        return self

    def write(self, tokenizer, contexts: list[list[int]]) -> list[list[int]]:
        self.calls.append(contexts)
        if len(contexts) == len(self.rollouts) and not all(map(self._goes_on, contexts, self._written)):
            self._written, self._turn = [[] for _ in contexts], [0] * len(contexts)
        turns, row = [], -1
        for context in contexts:
            row = next(
                i
                for i in range(row + 1, len(self.rollouts))
                if self._turn[i] < len(self.rollouts[i]) and context[: len(self._written[i])] == self._written[i]
            )
            ids = tokenizer(self.rollouts[row][self._turn[row]], add_special_tokens=False)["input_ids"]
            self._turn[row] += 1
            self._written[row] = context + ids
            turns.append(ids)
        return turns

    @staticmethod
    def _goes_on(context: list[int], written: list[int]) -> bool:
        return bool(written) and context[: len(written)] == written
