"""Configuration of [`A2TGPOTrainer`]."""

import pickle
import re
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

from trl import GRPOConfig

from .credit import (
    COMPARISONS,
    CREDIT_GROUPS,
    ESTIMATORS,
    SCHEDULES,
    SIGNALS,
    Estimator,
    estimator_of,
    options_read,
)

IMPORTANCE_SAMPLING_LEVELS = ("turn", "turn_product", "token", "sequence")
TURN_NORMALIZATIONS = ("turn_group", "group", "none")
TURN_AGGREGATIONS = ("sum_then_standardize", "standardize_then_sum")
TURN_BASELINES = ("mean", "leave_one_out", "none")
TURN_OUTCOMES = ("inside", "added")
BELIEF_MEASURES = ("logprob", "prob")
BELIEF_MODELS = ("policy", "reference")
ANSWER_ALIASES = ("first", "max", "logsumexp")
GAIN_STARTS = ("turn_start", "turn_end")
TOOL_PROTOCOLS = ("auto", "chat", "tags")
TOOL_LOOPS = ("a2tgpo", "trl")
TREE_CHOICES = ("surprisal", "random")
TREE_SHARED_TURNS = ("once", "per_leaf")
TREE_OPTIONS = ("tree_expansions", "tree_choice", "tree_sibling_penalty", "tree_shared_turns")
"""Options of trees, which `tree_chains` asks for."""
LOOP_OPTIONS = (
    "answer_stop",
    "tool_concurrency",
    "tool_timeout",
    "max_abandoned_calls",
    "max_turn_tokens",
    "max_observation_tokens",
    "reuse_history",
    "lockstep",
    "tree_chains",
)
"""Options of the tool loop of this package."""

# A clip range belongs to a ratio: the mean of a turn or a sequence moves far less than the ratio of a token or a product of them
_CLIP_RANGES = {"turn": (3e-3, 4e-3), "sequence": (3e-3, 4e-3), "token": (0.2, 0.2), "turn_product": (0.2, 0.2)}

_CLOSING_TAG = re.compile(r"\s*(</[^<>\s]+>)")

# What an option is that depends on the estimator, where neither the user nor the estimator says
_TURN_DEFAULTS = {
    "turn_advantage_coef": 0.3,
    "turn_gamma": 1.0,
    "turn_comparison": "prompt",
    "turn_scale": True,
    "turn_outcome": "inside",
    "belief_measure": "logprob",
}

# Options that some estimator reads: setting one that the chosen one does not read would be silently without effect
_ESTIMATORS_OPTIONS = tuple(
    dict.fromkeys(option for estimator in ESTIMATORS.values() for option in options_read(estimator))
)


@dataclass
class A2TGPOConfig(GRPOConfig):
    """
    Configuration of [`A2TGPOTrainer`]: [`~trl.GRPOConfig`] with the options of A²TGPO (arXiv 2605.06200).

    The options below are new, or have another default than in TRL. All others are TRL's.

    Raises:
        ValueError: If an option is out of its range, or set where nothing would read it.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "tool_tags"]

    importance_sampling_level: str | None = field(
        default=None,
        metadata={
            "help": "Over which tokens the importance ratio is averaged: 'turn' (equation 7), 'token' (GRPO) or "
            "'sequence' (GSPO); 'turn_product' is the ratio of the whole turn, the product over its tokens. Default: 'turn' with "
            "'a2tgpo', 'a2tgpo_stop', 'igpo', 'at2po' and 'belief_bonus', 'turn_product' with 'turn_ppo', 'token' with the others."
        },
    )
    epsilon: float | None = field(
        default=None,
        metadata={
            "help": "Lower clip range ε_low of the importance ratio. Default: 3e-3 at the turn and sequence level, the "
            "paper's value for full fine-tuning at learning rate 1e-6, and 0.2 at the token and the turn_product level."
        },
    )
    epsilon_high: float | None = field(
        default=None,
        metadata={
            "help": "Upper clip range ε_high of the importance ratio. Default: `epsilon` if that is set, else 4e-3 at the turn and "
            "sequence level, and 0.2 at the token and the turn_product level."
        },
    )
    loss_type: str | None = field(
        default=None,
        metadata={
            "help": "TRL's loss type. The paper's is 'grpo', a mean over tokens, then over completions. Default: 'grpo' with "
            "'a2tgpo', 'a2tgpo_stop', 'igpo', 'at2po' and 'belief_bonus', 'dapo' with the others."
        },
    )
    advantage_estimator: str = field(
        default="a2tgpo",
        metadata={
            "help": "How turns get credit: 'a2tgpo' (arXiv 2605.06200); 'igpo' (gains pooled per prompt, with the outcome as last term of "
            "their sum, arXiv 2510.14967, whose own importance ratio is per token); 'grpo' (TRL's outcome advantage alone: nothing is "
            "measured, and importance_sampling_level, epsilon, loss_type and skip_empty_updates default to what GRPOTrainer does); "
            "'trace' (log-ratios of beliefs, arXiv 2607.13988); 'a2tgpo_stop' (credit for stopping too, in no paper); 'gtpo' "
            "(arXiv 2511.14846), 'mt_grpo' (arXiv 2505.11821) and their family 'returns'; 'gigpo' (arXiv 2505.10978); 'turn_ppo' "
            "(generalised advantages from a critic, arXiv 2512.17008); 'at2po' (outcomes backed up a tree of rollouts, arXiv 2601.04767); or "
            "'belief_bonus' (the gains of a rollout together, for all its turns alike, in no paper). "
            "Or a subclass of a2tgpo_trl.credit.Estimator of your own: its dotted name on the command line, the class or an object of "
            "it in Python."
        },
    )
    turn_advantage_coef: float | None = field(
        default=None,
        metadata={
            "help": "Weight α ≥ 0 of the turn credit that is added to the outcome advantage (equation 5). With "
            "turn_outcome='inside' it is the weight of the turn rewards. Default: 0.3 with 'a2tgpo' and 'a2tgpo_stop', 0.2 with "
            "'trace', 2 with 'belief_bonus', 1 with 'returns', 'gtpo', 'mt_grpo' and 'gigpo'."
        },
    )
    turn_advantage_schedule: str = field(
        default="constant",
        metadata={
            "help": "How the weight α changes over a run: 'constant'; 'linear', it falls to 0 at the end of training; "
            "'mixed_share', in each batch it is multiplied by the share of rollouts in groups whose rewards differ."
        },
    )
    turn_gamma: float | None = field(
        default=None,
        metadata={
            "help": "Discount γ in [0, 1] per turn (equation 4). With 0 a turn gets credit for its own gain or reward alone. "
            "Default: 0.9 with 'gtpo', 0 with 'mt_grpo', 0.95 with 'gigpo', 0.8 with 'trace', 0.99 with "
            "'turn_ppo', 1 with the others."
        },
    )
    turn_clip_strength: float = field(
        default=0.3,
        metadata={
            "help": "Strength β in [0, 1) of adaptive clipping: a turn's gain multiplies its clip range by a factor within 1 ± β "
            "(equation 6). 0 turns it off. Paper: 0.3."
        },
    )
    turn_normalization: str = field(
        default="turn_group",
        metadata={
            "help": "Which gains are normalised together: 'turn_group', those of the same turn index of a prompt (equation 3); "
            "'group', those of all turns of a prompt; 'none' leaves gains as they are."
        },
    )
    turn_rescale: bool = field(
        default=True,
        metadata={"help": "Whether a sum of gains is divided by the square root of their number (equation 4)."},
    )
    turn_credit_groups: str = field(
        default="all",
        metadata={
            "help": "Which groups get turn credit: 'all', or 'mixed', those whose rewards differ. Where all rewards of a group are "
            "equal, no outcome can correct turn credit: with 'mixed' every turn there has the outcome advantage and the plain clip range."
        },
    )
    gain_noise_floor: float = field(
        default=0.0,
        metadata={
            "help": "Smallest standard deviation that gains are divided by, in the unit of the beliefs: gains that differ by less "
            "get little credit instead of unit credit. bfloat16 alone moves a mean log-probability by up to 0.02. Papers: 0."
        },
    )
    turn_comparison: str | None = field(
        default=None,
        metadata={
            "help": "Which turns are compared with each other: 'prompt', all turns of a prompt; 'turn', those with the same index; "
            "'state', those that start from the same state; 'origin', those that start from the same state at the same index; "
            "'batch', all turns of the batch. Default: 'turn' with 'mt_grpo', 'prompt' with the others."
        },
    )
    turn_aggregation: str = field(
        default="sum_then_standardize",
        metadata={
            "help": "What is compared: 'sum_then_standardize', the discounted sums of turn rewards; 'standardize_then_sum', the turn "
            "rewards, which are then summed."
        },
    )
    turn_baseline: str = field(
        default="mean",
        metadata={
            "help": "What a comparison subtracts: 'mean', the mean of the compared turns; 'leave_one_out', the mean of those other "
            "than the turn itself; 'none', nothing."
        },
    )
    turn_scale: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the difference is divided by the standard deviation of the compared turns. Default: False "
            "with 'gigpo' and 'a2tgpo_stop', True with the others."
        },
    )
    turn_outcome: str | None = field(
        default=None,
        metadata={
            "help": "Where the outcome enters: 'inside', the reward of the rollout is added to the turn reward of its last turn; "
            "'added', the outcome advantage is added to the turn credit. Default: 'added' with 'mt_grpo', 'inside' with the others."
        },
    )
    turn_reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weight of each of the trainer's turn_reward_funcs. Default: 1 each."},
    )
    gae_lambda: float = field(
        default=0.9,
        metadata={
            "help": "λ in [0, 1] of generalised advantages: with 0 a turn is judged by the critic's next value alone, with 1 by all "
            "rewards to come."
        },
    )
    whiten_advantages: bool = field(
        default=True,
        metadata={
            "help": "Whether advantages get mean 0 and standard deviation 1 over all turns of a generation batch, each turn once."
        },
    )
    critic_layers: int = field(
        default=2,
        metadata={
            "help": "Blocks of the critic, which starts as a copy of the policy's first ones, with embedding and final norm, in float32. 0: "
            "a value head on the policy's last hidden states, whose loss trains the policy too."
        },
    )
    critic_learning_rate: float = field(
        default=1e-5,
        metadata={"help": "Learning rate of the critic, on the policy's schedule."},
    )
    vf_coef: float = field(
        default=0.5,
        metadata={"help": "Weight > 0 of the critic's squared error in the loss."},
    )
    cliprange_value: float | None = field(
        default=0.2,
        metadata={
            "help": "How far from the value at the time of the rollout a change of the critic lowers its error. None: no limit."
        },
    )
    belief_measure: str | None = field(
        default=None,
        metadata={
            "help": "How belief in the answer is measured: 'logprob', the mean log-probability of its tokens in nats, or "
            "'prob', the geometric mean of their probabilities (equation 1). Default: 'prob' with 'belief_bonus', 'logprob' with the "
            "others."
        },
    )
    belief_model: str = field(
        default="policy",
        metadata={
            "help": "Which model's belief is measured: 'policy', or 'reference', a model that training does not change. With adapters "
            "that is the model with its adapters off or TRL's frozen copy of them; in full training it is TRL's reference model, which "
            "needs beta > 0."
        },
    )
    answer_aliases: str = field(
        default="first",
        metadata={
            "help": "Belief in an answer that has aliases: 'first', the belief in the first one that is not empty; 'max', the largest belief; "
            "'logsumexp', log Σ exp(s) over the mean log-probabilities s of all. Aliases that differ only in case, in Unicode forms of a "
            "character or in white space count as one."
        },
    )
    gain_from: str = field(
        default="turn_start",
        metadata={
            "help": "Where the gain of a tool turn is measured from, up to the end of its observation: 'turn_start' (equation 2), or "
            "'turn_end', the end of the turn's own text, so that an answer written into a query earns nothing."
        },
    )
    answer_column: str = field(
        default="answer",
        metadata={
            "help": "Dataset column with the true answer: text, or a list of aliases, see `answer_aliases`. A row with an empty "
            "answer is trained on its outcome only."
        },
    )
    answer_template: str = field(
        default="<answer>{answer}</answer>",
        metadata={
            "help": "Text that is teacher-forced after a context to measure belief in the answer, with one {answer}. Use the form "
            "in which your prompt asks for answers. Its closing tag also ends rollouts (answer_stop), and the command line's own prompts show it."
        },
    )
    ig_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a micro-batch where beliefs are scored in forwards of their own; a single completion may have "
            "more. Beliefs that are scored along with log-probabilities use TRL's micro-batches. Default: "
            "per_device_train_batch_size (in evaluation per_device_eval_batch_size) times the longest completion with its prompt "
            "and probes."
        },
    )
    tool_protocol: str = field(
        default="auto",
        metadata={
            "help": "How the model calls tools: 'chat' (the chat template's own calls), 'tags' (text tags, "
            "<search>query</search> answered by <result>…</result>), or 'auto': 'chat' where prompts are conversational "
            "and TRL knows the template's calls, 'tags' elsewhere. The prompt must explain the tags."
        },
    )
    tool_loop: str = field(
        default="a2tgpo",
        metadata={
            "help": "Which loop plays rollouts with tools: 'a2tgpo', this package's, or 'trl', GRPOTrainer's, for baselines that equal "
            "it bit for bit and for features that this package's loop lacks. TRL's loop handles the chat template's calls only, and "
            "runs one tool after the other, without time limits."
        },
    )
    tool_tags: dict | str | None = field(
        default=None,
        metadata={"help": "Tag that calls each tool, by tool name (tags protocol). Default: the tool's own name."},
    )
    result_tag: str = field(
        default="result",
        metadata={
            "help": "Tag around the result of a tool (tags protocol). A reward of `a2tgpo_trl.rewards` that is called without "
            "`turns` recognises tool results in plain text by the default tag only."
        },
    )
    answer_stop: str | None = field(
        default=None,
        metadata={
            "help": "Text that ends a rollout (tags protocol), so that nothing follows the answer; '' for none. Default: the "
            "closing tag after {answer} in answer_template, or none with mask_truncated_completions, which keeps only completions "
            "that end with the end-of-sequence token."
        },
    )
    tool_concurrency: int = field(
        default=32,
        metadata={
            "help": "Most synchronous tool calls that run at once, each on a thread of its own. All asynchronous calls run at once, "
            "on one event loop."
        },
    )
    tool_timeout: float | None = field(
        default=30.0,
        metadata={
            "help": "Seconds that a tool call may run. After that the model reads an error and the call is abandoned: nothing "
            "waits for its thread. None: no limit."
        },
    )
    max_abandoned_calls: int = field(
        default=128,
        metadata={
            "help": "Most abandoned tool calls that may still be running, each on its thread. One more ends the run with an "
            "error."
        },
    )
    max_turn_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of one turn of the model, which is cut there. Default: what max_completion_length leaves."
        },
    )
    max_observation_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of one observation: the tool results of a turn with their markup. Longer results are cut, with a "
            "note that says so; markup and notes are never cut. Default: no limit; an observation for which max_completion_length "
            "leaves no room is dropped, and the completion ends at its tool call (as in TRL)."
        },
    )
    reuse_history: bool = field(
        default=True,
        metadata={
            "help": "Whether generation with transformers keeps the keys and values of a rollout between its turns. If "
            "not, each turn reads the whole history again, as in TRL."
        },
    )
    lockstep: bool = field(
        default=False,
        metadata={
            "help": "Whether all rollouts take their next turn together, so that a seed gives the same run however fast the tools "
            "are. If not, rollouts whose tools are done do not wait for much slower ones. Always on where generation is "
            "collective: ZeRO-3, FSDP, vLLM server, vLLM with tensor parallelism."
        },
    )
    tree_chains: int | None = field(
        default=None,
        metadata={
            "help": "Rollouts that each prompt of a training batch begins with. The others of its num_generations then begin as one of "
            "them did: turns are written anew in rounds, and the rollouts of a prompt are the leaves of a tree. Paper: 10 of 22. "
            "Default: all; no tree."
        },
    )
    tree_expansions: int = field(
        default=6,
        metadata={
            "help": "Most turns of a prompt that are written anew in one round, each as the start of a new rollout. The last round has "
            "what is missing to num_generations. Paper: 6."
        },
    )
    tree_choice: str = field(
        default="surprisal",
        metadata={
            "help": "Which turns are written anew: 'surprisal', those whose tokens were least expected, by the mean of -log π less "
            "tree_sibling_penalty, against 0 for a new rollout from the prompt; or 'random', any."
        },
    )
    tree_sibling_penalty: float = field(
        default=0.05,
        metadata={
            "help": "Nats that a turn's surprisal counts less for each other turn that was written in the same place (tree_choice="
            "'surprisal'). Paper: 0.05."
        },
    )
    tree_shared_turns: str = field(
        default="once",
        metadata={
            "help": "How a turn that several rollouts share is trained on: 'once', its advantage divided by their number in each of "
            "them; or 'per_leaf', in full in each, as in the release of the paper."
        },
    )
    skip_empty_updates: bool | None = field(
        default=None,
        metadata={
            "help": "Whether an optimizer step whose gradient is exactly zero leaves weights and optimizer state alone. "
            "TRL takes such steps: Adam's momentum moves the weights although there was nothing to learn from. Default: True with "
            "'a2tgpo', 'a2tgpo_stop', 'igpo', 'at2po' and 'belief_bonus', False with the others."
        },
    )
    turn_records: bool = field(
        default=True,
        metadata={
            "help": "Whether each turn of training is recorded in output_dir/turns (Parquet): texts, tool calls, beliefs, "
            "gains, advantages, clip ranges. `a2tgpo report` shows them."
        },
    )
    turn_records_max_mb: float = field(
        default=512.0,
        metadata={
            "help": "Most megabytes that turn records may take on disk. Above that, every second batch of those kept is dropped, so "
            "that the records still cover the whole run."
        },
    )
    turn_records_picture_px: int = field(
        default=256,
        metadata={
            "help": "Longest side, in pixels, of the small copies that turn records keep of the pictures in prompts and observations: "
            "JPEG files of at most 32 KB, each picture once a batch; 0 keeps none."
        },
    )
    turn_table_steps: int = field(
        default=50,
        metadata={
            "help": "Optimizer steps between tables of turn records in wandb and trackio, where these track the run; 0 "
            "sends none."
        },
    )

    def __post_init__(self):
        self._check_estimator()
        self._set_defaults()
        self._check_choice("importance_sampling_level", IMPORTANCE_SAMPLING_LEVELS)
        self._check_choice("turn_normalization", TURN_NORMALIZATIONS)
        self._check_choice("belief_model", BELIEF_MODELS)
        self._check_choice("answer_aliases", ANSWER_ALIASES)
        self._check_choice("gain_from", GAIN_STARTS)
        self._check_choice("tool_protocol", TOOL_PROTOCOLS)
        self._check_choice("tool_loop", TOOL_LOOPS)
        self._check_turn_credit()
        if self.answer_template.count("{answer}") != 1:
            raise ValueError(
                f"answer_template must contain {{answer}} exactly once, got {self.answer_template!r} with "
                f"{self.answer_template.count('{answer}')}. For example: '<answer>{{answer}}</answer>'."
            )
        if self.ig_tokens_per_batch is not None and self.ig_tokens_per_batch < 1:
            raise ValueError(
                f"ig_tokens_per_batch must be at least 1, or None for TRL's batch size, got {self.ig_tokens_per_batch}."
            )
        self._check_rollouts()
        self._check_tree()
        self._check_records()
        self._check_unread()
        self._check_with_estimator()
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError(
                "loss_type='cispo' caps the ratio itself at epsilon_high, so the default clip range would stop learning: "
                "set epsilon_high to the cap, for example 5.0."
            )
        if self.epsilon is None:
            self.epsilon, default_high = _CLIP_RANGES[self.importance_sampling_level]
            self.epsilon_high = default_high if self.epsilon_high is None else self.epsilon_high
        super().__post_init__()
        self._check_whole_groups()

    @property
    def estimator(self) -> Estimator:
        """The estimator that `advantage_estimator` names, or is."""
        return estimator_of(self.advantage_estimator)

    @property
    def signals(self) -> tuple[str, ...]:
        """What the estimator needs with these options."""
        return tuple(self.estimator.needs(self.options_for(self.estimator)))

    def options_for(self, estimator: Estimator) -> SimpleNamespace:
        """What an estimator may read: the options that it states."""
        return SimpleNamespace(**{option: getattr(self, option) for option in estimator.options})

    def to_dict(self) -> dict[str, Any]:
        """As TRL's; an estimator of one's own stands there by the name of its class, so that it can be written as JSON."""
        options = super().to_dict()
        if not isinstance(self.advantage_estimator, str):
            cls = type(self.estimator)
            options["advantage_estimator"] = f"{cls.__module__}.{cls.__qualname__}"
        return options

    @property
    def every_update_is_on_policy(self) -> bool:
        """Whether no weight changes between a generation batch and its last update."""
        return self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0

    @property
    def answer_stop_string(self) -> str | None:
        """The text that ends a rollout with tags: `answer_stop`, or its default."""
        if self.answer_stop is not None or self.mask_truncated_completions:
            return self.answer_stop or None
        closing = _CLOSING_TAG.match(self.answer_template.partition("{answer}")[2])
        return closing and closing.group(1)

    def _set_defaults(self) -> None:
        """Values of options that nobody set; one that the estimator does not read remains `None`."""
        read = {option: _TURN_DEFAULTS[option] for option in options_read(self.estimator) if option in _TURN_DEFAULTS}
        for option, default in (Estimator.defaults | read | self.estimator.defaults).items():
            if getattr(self, option) is None:
                setattr(self, option, default)

    def _check_choice(self, option: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, option)
        if value not in choices:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, choices))}, got {value!r}.")

    def _check_estimator(self) -> None:
        estimator, defaults = self.estimator, {option.name: option.default for option in fields(self)}
        name = type(estimator).__name__
        if unknown := set(estimator.options) - set(defaults):
            raise ValueError(
                f"{name}.options names {min(unknown)!r}, which is no option of {type(self).__name__}: give an estimator of "
                "your own its settings as arguments of its __init__."
            )
        if fixed := [option for option in estimator.defaults if defaults.get(option, option) is not None]:
            raise ValueError(
                f"{name}.defaults names {fixed[0]!r}, which cannot depend on the estimator: only options whose default is "
                "None can."
            )
        if unread := [
            option for option in estimator.defaults if option in _TURN_DEFAULTS.keys() - {*options_read(estimator)}
        ]:
            raise ValueError(f"{name}.defaults names {unread[0]!r}, which {name}.options does not: add it there.")
        try:
            pickle.dumps(self.advantage_estimator)
        except Exception as error:
            raise ValueError(
                f"advantage_estimator={name} cannot be pickled, and checkpoints hold the options: define the class at the "
                f"top level of a module, with attributes that can be pickled ({error})."
            ) from error

    def _check_turn_credit(self) -> None:
        choices = {
            "turn_advantage_schedule": SCHEDULES,
            "turn_credit_groups": CREDIT_GROUPS,
            "turn_comparison": COMPARISONS,
            "turn_aggregation": TURN_AGGREGATIONS,
            "turn_baseline": TURN_BASELINES,
            "turn_outcome": TURN_OUTCOMES,
            "belief_measure": BELIEF_MEASURES,
        }
        for option, known in choices.items():
            if getattr(self, option) is not None:
                self._check_choice(option, known)
        alpha, gamma = self.turn_advantage_coef, self.turn_gamma
        self._check_range("turn_advantage_coef", "α", alpha is None or alpha >= 0, "at least 0")
        self._check_range("turn_gamma", "γ", gamma is None or 0 <= gamma <= 1, "in [0, 1]")
        self._check_range("turn_clip_strength", "β", 0 <= self.turn_clip_strength < 1, "in [0, 1)")
        self._check_range("gain_noise_floor", "σ", self.gain_noise_floor >= 0, "at least 0")
        self._check_critic()

    def _check_critic(self) -> None:
        clip = self.cliprange_value
        self._check_range("gae_lambda", "λ", 0 <= self.gae_lambda <= 1, "in [0, 1]")
        self._check_range("critic_layers", "blocks", self.critic_layers >= 0, "at least 0 (0: a head on the policy)")
        self._check_range("critic_learning_rate", "per step", self.critic_learning_rate > 0, "above 0")
        self._check_range("vf_coef", "weight", self.vf_coef > 0, "above 0")
        self._check_range("cliprange_value", "reward", clip is None or clip > 0, "above 0, or None for no limit")

    def _check_with_estimator(self) -> None:
        if unmeasured := [signal for signal in self.signals if signal not in SIGNALS]:
            raise ValueError(
                f"advantage_estimator={self.advantage_estimator!r} needs {unmeasured[0]!r} with these options, which is not "
                f"measured: there are {', '.join(SIGNALS)}. Choose another estimator, or options that need nothing else."
            )
        if "tree" in self.signals and self.tree_chains is None:
            raise ValueError(
                f"advantage_estimator={self.advantage_estimator!r} credits the turns of a tree, and tree_chains is not set: set it, for "
                f"example to {max(self.num_generations // 2, 1)} of num_generations={self.num_generations}, or choose another estimator."
            )
        self.estimator.check(self.options_for(self.estimator))

    def _check_range(self, option: str, symbol: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(f"{option} ({symbol}) must be {expected}, got {getattr(self, option)}.")

    def _check_rollouts(self) -> None:
        if self.max_completion_length is None or self.max_completion_length < 1:
            raise ValueError(
                f"max_completion_length must be at least 1, got {self.max_completion_length}. For completions that may "
                "fill the model's context give its length in tokens: rollouts with tools end there, whatever the limit."
            )
        if self.tool_concurrency < 1:
            raise ValueError(f"tool_concurrency must be at least 1, got {self.tool_concurrency}.")
        if self.max_abandoned_calls < 0:
            raise ValueError(f"max_abandoned_calls must be at least 0, got {self.max_abandoned_calls}.")
        if self.tool_timeout is not None and self.tool_timeout <= 0:
            raise ValueError(f"tool_timeout must be positive, or None for no limit, got {self.tool_timeout}.")
        for option in ("max_turn_tokens", "max_observation_tokens"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option} must be at least 1, or None for no limit, got {value}.")

    def _check_tree(self) -> None:
        self._check_choice("tree_choice", TREE_CHOICES)
        self._check_choice("tree_shared_turns", TREE_SHARED_TURNS)
        defaults = {option.name: option.default for option in fields(self)}
        if self.tree_chains is None:
            for option in TREE_OPTIONS:
                if getattr(self, option) != defaults[option]:
                    raise ValueError(
                        f"{option}={getattr(self, option)!r} has no effect without a tree: leave it at its default "
                        f"({defaults[option]!r}), or set tree_chains."
                    )
            return
        if not 1 <= self.tree_chains <= self.num_generations:
            raise ValueError(
                f"tree_chains must be at least 1 and at most num_generations={self.num_generations}, got {self.tree_chains}: it is how "
                "many of a prompt's rollouts do not begin as another one did."
            )
        if self.tree_expansions < 1:
            raise ValueError(f"tree_expansions must be at least 1, got {self.tree_expansions}.")
        self._check_range("tree_sibling_penalty", "nats", self.tree_sibling_penalty >= 0, "at least 0")
        if self.tree_choice == "random" and self.tree_sibling_penalty != defaults["tree_sibling_penalty"]:
            raise ValueError(
                f"tree_sibling_penalty={self.tree_sibling_penalty} has no effect with tree_choice='random': leave it at its default "
                f"({defaults['tree_sibling_penalty']}), or choose 'surprisal'."
            )
        if self.use_transformers_continuous_batching and (self.tree_choice == "surprisal" or "tree" in self.signals):
            raise ValueError(
                f"tree_choice={self.tree_choice!r} with advantage_estimator={self.advantage_estimator!r} needs the log-probabilities of "
                "sampled tokens, which continuous batching does not tell: set use_transformers_continuous_batching=False, or "
                "tree_choice='random' with an estimator that does not read the tree."
            )

    def _check_whole_groups(self) -> None:
        """A tree is played by one process."""
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if self.tree_chains is not None and rows % self.num_generations:
            raise ValueError(
                f"tree_chains={self.tree_chains} needs all rollouts of a prompt on one process, and each has {rows} rows "
                f"(per_device_train_batch_size={self.per_device_train_batch_size} times steps_per_generation="
                f"{self.steps_per_generation}), no multiple of num_generations={self.num_generations}: change one of them."
            )

    def _check_records(self) -> None:
        if self.turn_records_max_mb <= 0:
            raise ValueError(f"turn_records_max_mb must be positive, got {self.turn_records_max_mb}.")
        if self.turn_records_picture_px < 0:
            raise ValueError(
                f"turn_records_picture_px must be at least 0 (0: no pictures), got {self.turn_records_picture_px}."
            )
        if self.turn_table_steps < 0:
            raise ValueError(f"turn_table_steps must be at least 0 (0: no tables), got {self.turn_table_steps}.")

    def _check_unread(self) -> None:
        defaults = {option.name: option.default for option in fields(self)} | _TURN_DEFAULTS
        read = options_read(self.estimator)
        for option in _ESTIMATORS_OPTIONS:
            if option not in read and getattr(self, option) not in (None, defaults[option]):
                readers = [repr(name) for name, estimator in ESTIMATORS.items() if option in options_read(estimator)]
                raise ValueError(
                    f"{option}={getattr(self, option)!r} has no effect with advantage_estimator="
                    f"{self.advantage_estimator!r}: leave it at its default ({defaults[option]!r}), or choose "
                    f"{' or '.join(readers)}."
                )
        if self.tool_protocol == "chat" and (
            self.tool_tags or self.result_tag != defaults["result_tag"] or self.answer_stop
        ):
            raise ValueError(
                "tool_tags, result_tag and answer_stop have no effect with tool_protocol='chat': use 'tags'."
            )
        if self.tool_loop == "trl":
            self._check_unread_by_trls_loop(defaults)
        if self.importance_sampling_level == "turn_product" and self.loss_type == "vespo":
            raise ValueError(
                "loss_type='vespo' sums the log ratios of tokens, and importance_sampling_level='turn_product' gives each token the sum "
                "of its turn: choose importance_sampling_level='token', or another loss type, such as 'dapo'."
            )
        if self.loss_type in ("sapo", "vespo") and "turn_clip_strength" in read and self.turn_clip_strength:
            raise ValueError(
                f"loss_type={self.loss_type!r} has no clip range for turn_clip_strength={self.turn_clip_strength} to "
                "adapt: set turn_clip_strength=0, or choose a clipped loss type such as 'grpo'."
            )

    def _check_unread_by_trls_loop(self, defaults: dict[str, Any]) -> None:
        if self.tool_protocol == "tags":
            raise ValueError(
                "tool_loop='trl' knows the chat template's calls only, and tool_protocol is 'tags': leave tool_protocol out, or "
                "choose tool_loop='a2tgpo'."
            )
        for option in (*LOOP_OPTIONS, "tool_tags", "result_tag"):
            if getattr(self, option) != defaults[option]:
                raise ValueError(
                    f"{option}={getattr(self, option)!r} has no effect with tool_loop='trl': leave it at its default "
                    f"({defaults[option]!r}), or choose tool_loop='a2tgpo'."
                )
