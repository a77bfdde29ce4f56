"""What the benchmarks of the tool loop share: trainers whose model is replaced by a script, so that only the loop counts."""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOTrainer
from trl.chat_template_utils import qwen2_5_chat_template

from a2tgpo_trl.data import load_atlas

END = "<|im_end|>"
ANSWER = f"The answer is 42.{END}"


TOOL_CALL = '<tool_call> {"name": "wait", "arguments": {"key": 1}} </tool_call> answer'


@cache
def atlas_tokenizer() -> PreTrainedTokenizerFast:
    """Trained on the embedded questions and passages: about as many tokens to a text as a real one needs."""
    atlas = load_atlas()
    texts = [passage["text"] for passage in atlas.passages] + [question["question"] for question in atlas.questions]
    return make_tokenizer([TOOL_CALL, *[qwen2_5_chat_template] * 20, *texts], vocab_size=1024)


def make_tokenizer(texts: Sequence[str] = (TOOL_CALL,), vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen2.5's chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=special[0],
        additional_special_tokens=special[1:2],
        chat_template=qwen2_5_chat_template,
    )


def call(name: str, **arguments) -> str:
    """A tool call as Qwen2.5 writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>{END}'


def make_trainer(
    trainer_class, config_class, tools: list[Callable], num_rollouts: int, conversational: bool = True, **options
):
    """A trainer of a model too small to matter; prompts are messages, or plain text for tags."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=8192,
        )
    )
    model.generation_config.eos_token_id = 2
    return trainer_class(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config_class(
            tempfile.mkdtemp(),
            per_device_train_batch_size=num_rollouts,
            num_generations=num_rollouts,
            max_completion_length=1900,
            use_cpu=True,
            bf16=False,
            report_to=[],
            **options,
        ),
        train_dataset=Dataset.from_list(rows(num_rollouts, conversational)),
        processing_class=make_tokenizer(),
        tools=tools,
    )


def rows(num_rollouts: int, conversational: bool = True) -> list[dict]:
    """Prompts that tell the rollouts apart."""
    prompts = [f"What is number {i}?" for i in range(num_rollouts)]
    return [{"prompt": [{"role": "user", "content": p}] if conversational else p, "answer": "42"} for p in prompts]


class _RolledOut(Exception):
    pass


def play(trainer, write: Callable[[list[list[int]]], list[list[int]]], inputs: list[dict]) -> tuple:
    """
    Roll out one batch, and leave out its scoring.

    Args:
        trainer: From [`make_trainer`].
        write (`Callable`): Contexts → turns.
        inputs (`list[dict]`): The batch.

    Returns:
        `tuple`: what `_generate` of TRL's trainer returns: prompt ids, completion ids, masks, completions, …
    """
    generate, generate_turn, outputs = trainer._generate, GRPOTrainer._generate_single_turn, []

    def keep(prompts):
        outputs.append(generate(prompts))
        raise _RolledOut

    trainer._generate = keep
    GRPOTrainer._generate_single_turn = lambda self, contexts, *args, **kwargs: (write(contexts), None)
    try:
        trainer._generate_and_score_completions([dict(row) for row in inputs])
    except _RolledOut:
        return outputs[0]
    finally:
        trainer._generate, GRPOTrainer._generate_single_turn = generate, generate_turn
