"""`a2tgpo train`: options → trainer → checkpoint."""

from dataclasses import dataclass, field, fields

from trl import ModelConfig, get_peft_config, get_quantization_config

from .. import A2TGPOConfig, A2TGPOTrainer
from ..callbacks.interrupt import StopOnInterrupt
from ..checks import has_pictures
from ..data import DataError
from ..integrations.checkpoints import damage_of, last_checkpoint, steps_of
from .dry_run import resolved, show
from .main import INTERRUPTED, as_bad_usage
from .models import ModelSource, find_model
from .names import TaskArguments, load_rewards, load_turn_rewards, tag_of_finish
from .parser import parse
from .prompts import default_template
from .searches import check_retrievers

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
    dataset_subset: str | None = field(
        default=None, metadata={"help": "Subset (configuration) of a dataset on the Hub."}
    )
    eval_dataset: str | None = field(default=None, metadata={"help": "Questions for eval_strategy, as for dataset."})
    eval_split: str = field(default="test", metadata={"help": "Split of eval_dataset."})
    eval_subset: str | None = field(default=None, metadata={"help": "Subset of an eval_dataset on the Hub."})
    streaming: bool = field(default=False, metadata={"help": "Whether questions are read while training goes on."})
    rewards: list[str] = field(
        default_factory=lambda: ["exact_match"],
        metadata={
            "help": "Reward functions: exact_match, f1, format, or dotted names: my_module.my_reward, my_file.py:my_reward. Weights: "
            "reward_weights."
        },
    )
    turn_reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Turn rewards: format_penalty, tool_reward, dotted names of functions, or process reward models, folders or "
            "names on the Hub. Weights: turn_reward_weights."
        },
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
    options = resolved(arguments, config, model)
    with as_bad_usage():
        checkpoint = _checkpoint(config)
        trainer = build(arguments, config, model)
    if arguments.dry_run:
        show(trainer, options)
        return 0
    start = steps_of(checkpoint) if checkpoint else None  # the folder may be rotated away
    interrupt = StopOnInterrupt(trainer.accelerator)
    trainer.add_callback(interrupt)
    with as_bad_usage(DataError):  # rows that are streamed
        trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.is_asked:
        trainer.accelerator.print(
            f"Stopped after step {trainer.state.global_step}, with a checkpoint in {config.output_dir}. Go on with "
            "--resume_from_checkpoint last."
        )
        return INTERRUPTED
    trainer.save_model(config.output_dir)
    steps = trainer.state.global_step
    done = f"This run was finished after {steps} steps" if steps == start else f"Trained {steps} steps"
    trainer.accelerator.print(f"{done}; the model is in {config.output_dir}.")
    return 0


def build(arguments: TrainArguments, config: A2TGPOConfig, model: ModelConfig) -> A2TGPOTrainer:
    """The trainer that options ask for; raises what a bad one or a missing file raises."""
    rewards, turn_rewards = load_rewards(arguments.rewards), load_turn_rewards(arguments.turn_reward_funcs)
    source = find_model(model, config)
    _check_lora(model, source)
    tools, tokenizer = arguments.load_tools(), source.tokenizer()
    tag_of_finish(tools, config)
    check_retrievers(arguments.search_url)
    template = default_template(tools, tokenizer, arguments.conversational, config)
    train_set = arguments.load_data(
        arguments.dataset, arguments.dataset_split, template, arguments.dataset_subset, arguments.streaming
    )
    eval_set = arguments.eval_dataset and arguments.load_data(
        arguments.eval_dataset, arguments.eval_split, template, arguments.eval_subset
    )
    pictures = arguments.pictures or has_pictures(train_set, eval_set or None)
    config.model_init_kwargs = None if source.base else source.options
    return A2TGPOTrainer(
        model=source.load(model, is_trainable=True) if source.base else source.name,
        reward_funcs=rewards,
        args=config,
        train_dataset=train_set,
        eval_dataset=eval_set or None,
        processing_class=source.processor() if pictures else tokenizer,
        quantization_config=None if source.base else get_quantization_config(model),
        peft_config=get_peft_config(model),
        tools=tools or None,
        turn_reward_funcs=turn_rewards,
    )


def _check_lora(model: ModelConfig, source: ModelSource) -> None:
    """Refuse options of a new adapter where none is made."""
    defaults = {option.name: option.default for option in fields(model)}
    names = [name for name in defaults if name.startswith("lora_") or name in ("use_rslora", "use_dora")]
    lora = [f"{name}={getattr(model, name)}" for name in names if getattr(model, name) != defaults[name]]
    if source.base and (model.use_peft or lora):
        unread = ", ".join(["use_peft"] * model.use_peft + lora)
        raise ValueError(
            f"model_name_or_path is {source.name!r}, an adapter, which is trained further: leave out {unread}."
        )
    if lora and not model.use_peft:
        raise ValueError(f"{', '.join(lora)} without use_peft: add use_peft to train an adapter, or leave them out.")


def _checkpoint(config: A2TGPOConfig) -> str | None:
    """Where to go on: `resume_from_checkpoint` is a folder, or `last` for the last complete one in `output_dir`."""
    folder = config.resume_from_checkpoint
    if not folder:
        return None
    if folder in ("last", True):
        folder = last_checkpoint(config.output_dir)
        if folder is None:
            raise ValueError(
                f"resume_from_checkpoint is 'last', and there is no complete checkpoint in {config.output_dir}: leave it out "
                "to train from the start."
            )
        return folder
    if damage := damage_of(folder):
        raise ValueError(
            f"resume_from_checkpoint is {folder!r}, which is not a complete checkpoint ({damage}): name the folder of another, or "
            "'last' for the last complete one."
        )
    return folder
