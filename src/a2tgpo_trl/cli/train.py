"""`a2tgpo train`: options → trainer → checkpoint."""

from dataclasses import dataclass, field
from typing import Any

from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, get_peft_config, get_quantization_config

from .. import A2TGPOConfig, A2TGPOTrainer
from .dry_run import show
from .interrupt import StopOnInterrupt
from .main import INTERRUPTED, as_bad_usage
from .names import TaskArguments, load_rewards
from .parser import parse

DESCRIPTION = "Train a tool-using model with A²TGPO. Options of TRL's GRPOConfig and ModelConfig are taken as well."


@dataclass
class TrainArguments(TaskArguments):
    """What to train on."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Questions with answers: a file (JSONL, JSON, Parquet), a folder, a name on the Hub, or 'atlas'."
        },
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset to train on."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Questions for eval_strategy, as for dataset."})
    eval_split: str = field(default="test", metadata={"help": "Split of eval_dataset."})
    streaming: bool = field(default=False, metadata={"help": "Whether questions are read while training goes on."})
    rewards: list[str] = field(
        default_factory=lambda: ["exact_match"],
        metadata={"help": "Reward functions: exact_match, f1, format, or dotted names. Weights: reward_weights."},
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Build everything, print the options, a prompt, one rollout with its credit and an estimate of memory, and "
            "stop."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset is None:
            raise ValueError("dataset is missing: name a file, a folder, a dataset on the Hub, or 'atlas'.")


def run(options: list[str]) -> int:
    """Train, or show what would be trained; returns the exit status."""
    arguments, config, model = parse("train", DESCRIPTION, (TrainArguments, A2TGPOConfig, ModelConfig), options)
    with as_bad_usage():
        trainer = build(arguments, config, model)
        checkpoint = _checkpoint(config)
    if arguments.dry_run:
        show(trainer)
        return 0
    interrupt = StopOnInterrupt(trainer.accelerator)
    trainer.add_callback(interrupt)
    trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.is_asked:
        trainer.accelerator.print(
            f"Stopped after step {trainer.state.global_step}, with a checkpoint in {config.output_dir}. Go on with "
            "--resume_from_checkpoint last."
        )
        return INTERRUPTED
    trainer.save_model(config.output_dir)
    trainer.accelerator.print(f"Trained {trainer.state.global_step} steps; the model is in {config.output_dir}.")
    return 0


def build(arguments: TrainArguments, config: A2TGPOConfig, model: ModelConfig) -> A2TGPOTrainer:
    """The trainer that options ask for; raises what a bad one or a missing file raises."""
    if model.model_name_or_path is None:
        raise ValueError("model_name_or_path is missing: name a model on the Hub or a folder.")
    config.model_init_kwargs = loading_options(model, config)
    evaluation = arguments.eval_dataset and arguments.load_data(arguments.eval_dataset, arguments.eval_split)
    return A2TGPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=load_rewards(arguments.rewards),
        args=config,
        train_dataset=arguments.load_data(arguments.dataset, arguments.dataset_split, arguments.streaming),
        eval_dataset=evaluation or None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        tools=arguments.load_tools() or None,
    )


def loading_options(model: ModelConfig, config: A2TGPOConfig) -> dict[str, Any]:
    """How a model is loaded: ModelConfig's options, under those of `model_init_kwargs`."""
    options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return {**options, **(config.model_init_kwargs or {})}


def _checkpoint(config: A2TGPOConfig) -> str | None:
    """Where to go on: `resume_from_checkpoint` is a folder, or `last` for the last one in `output_dir`."""
    if config.resume_from_checkpoint != "last":
        return config.resume_from_checkpoint
    checkpoint = get_last_checkpoint(config.output_dir)
    if checkpoint is None:
        raise ValueError(f"resume_from_checkpoint is 'last', and there is no checkpoint in {config.output_dir}.")
    return checkpoint
