"""[`A2TGPOTrainer`]: TRL's `GRPOTrainer` with a multi-turn tool loop and credit for each turn."""

import math
import sys
import textwrap
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.trainer import grpo_trainer
from trl.trainer.utils import get_config_model_id, print_prompt_completions_sample

from .backends import backend_of, context_length
from .belief import BeliefScorer, RidingModel, scored_answer, shared_beliefs
from .checkpoints import damage_of, last_checkpoint, steps_of
from .checks import (
    check_arguments,
    check_columns,
    check_context_for_trls_loop,
    check_loop,
    check_observation_limit,
    check_tags_are_told,
    check_tool_names,
    check_trainable,
    prompts_are_conversational,
    warn_of_settings,
)
from .config import A2TGPOConfig
from .credit import TurnCredit, Turns, check_credit, without_rounding
from .finite_rewards import marking_nan, without_infinite
from .functional import information_gain, observation_ends, spread_turns, turn_ids, turn_level_old_logps
from .generation import TurnGenerator
from .metrics import (
    RolloutRecord,
    credit_metrics,
    distinct,
    rollout_metrics,
    rows_of_turns,
    turn_table,
)
from .plain import plain_parts
from .progress import progress
from .records import SCHEMA
from .records.recorder import TurnRecorder
from .records.rows import RecordedRollout, credit_columns, recorded_answer, turn_rows
from .records.tables import completions_table
from .replaced import replaced
from .rollout import (
    ChatProtocol,
    Rollout,
    RolloutLimits,
    TagProtocol,
    ToolExecutor,
    ToolLoop,
    add_answers,
    choose_protocol,
    raising_value_errors,
    with_named_resets,
)
from .updates import SkipUpdates

logger = logging.get_logger(__name__)

CREDIT_COLUMNS = ("information_gain", "turn_advantages", "clip_scale")
"""Columns of the completions table, and of what `play` returns, beside those of the estimator."""
TABLE_COLUMNS = ("step", "prompt", "completion", "advantage", "image", "rewards", *CREDIT_COLUMNS)
"""Names that neither a reward function nor what it logs can have in the completions table."""


class A2TGPOTrainer(GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] that plays multi-turn rollouts and gives each turn its own advantage, importance ratio and clip
    range, from how much the turn raised the policy's belief in the true answer (A²TGPO, arXiv 2605.06200).

    It takes the arguments of [`~trl.GRPOTrainer`] in their order; what differs is listed.

    Args:
        args ([`A2TGPOConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            With the columns `prompt` and `args.answer_column`. Environments may give the answers instead: the attribute of
            that name, which `reset` sets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            A tokenizer. Default: the model's, of a model for pictures or audio too, which is then trained on text.
            Processors are refused.
        tools (list of `Callable`, *optional*):
            Typed, documented functions, called by the chat template's tool calls or by text tags, see
            `args.tool_protocol`.

    Raises:
        TypeError: If `args` is no [`A2TGPOConfig`], or `processing_class` is a processor.
        ValueError: If there are pictures in the data, the answer column is missing, a tool lacks types or a docstring, or neither protocol can work.
    """

    _tag_names = ["trl", "grpo", "a2tgpo"]
    _name = "A2TGPO"
    _paper = {
        "title": "A²TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping",
        "id": "2605.06200",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{chen2026a2tgpo,
                title        = {{A$^2$TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping}},
                author       = {Dingwei Chen and Zefang Zong and Zhipeng Ma and Leo Luo and Yang Li and Chengming Li and Peng Chen and Jie Jiang},
                year         = 2026,
                eprint       = {arXiv:2605.06200},
            }"""),
    }

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: A2TGPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        reward_processing_classes=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
        tools: list[Callable] | None = None,
        rollout_func=None,
        environment_factory=None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = A2TGPOConfig(f"{name.split('/')[-1]}-A2TGPO")
        if processing_class is None:
            processing_class = _load_tokenizer(model, args)
        check_arguments(args, train_dataset, eval_dataset, processing_class, tools or [], environment_factory)
        conversational = prompts_are_conversational(train_dataset)
        uses_tools = bool(tools or environment_factory)
        protocol = choose_protocol(args.tool_protocol, processing_class, conversational) if uses_tools else None
        check_loop(args, protocol)
        if protocol == "tags" and args.tool_protocol == "auto":
            check_tags_are_told(args, processing_class, train_dataset, tools or [])
        check_columns(args.estimator, {*TABLE_COLUMNS, *SCHEMA.names} - {"normalized_gain"})
        warn_of_settings(args, protocol)
        template_tools = tools
        if protocol == "tags" and environment_factory is None:
            # GRPOTrainer takes tools for calls of the chat template, which may not know any
            template_tools = None
            TagProtocol(processing_class, tools, args.tool_tags, args.result_tag)  # refuses what it cannot call
        self.estimator = args.estimator
        self._inputs = self._answers = self._riding = self._generated = self._played = self._rewards = None
        self._loss_inputs, self._rides = None, False
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=template_tools,
            rollout_func=rollout_func,
            environment_factory=with_named_resets(environment_factory),
        )
        if template_tools is not tools:
            self.tools = self._standalone_tools = list(tools)
        self.reward_func_names = distinct(self.reward_func_names, self._table_columns)
        self._set_up_rollouts(protocol, conversational)
        self._set_up_credit()
        self._set_up_updates()
        self._set_up_records()

    # ---- rollouts ----------------------------------------------------------------------------------------------

    def _set_up_rollouts(self, protocol: str | None, conversational: bool) -> None:
        args, tokenizer = self.args, self._tokenizer
        for tools in getattr(self, "_env_tools", {}).values():
            check_tool_names(tools)
        self._protocol = self._turns = None
        self.backend = backend_of(self)
        if args.tool_loop == "trl":
            if protocol is not None:
                check_context_for_trls_loop(self.model.config)
            return
        if protocol == "chat":
            self._protocol = ChatProtocol(tokenizer, self._get_tool_suffix_ids, self.eos_token_ids)
        elif protocol == "tags":
            self._protocol = TagProtocol(
                tokenizer,
                self.tools,
                args.tool_tags,
                args.result_tag,
                conversational,
                self.eos_token_ids,
                args.answer_stop_string,
            )
        if self._protocol is not None:
            self._turns = TurnGenerator(self, self._protocol)
            limits = args.tool_concurrency, args.tool_timeout, args.max_abandoned_calls
            self._executor = ToolExecutor(*limits, _thread_initializer(self.accelerator.device))
            if self.tools and args.max_observation_tokens is not None:
                check_observation_limit(args.max_observation_tokens, self._protocol, self.tools[0].__name__)

    def _tokenize_prompts(self, prompts: list):
        if not isinstance(self._protocol, TagProtocol):
            return super()._tokenize_prompts(prompts)
        # Tags are described by the prompt's author, so the template is not to render the tools' schemas
        hidden = {"tools": []}
        if self.environment_factories is not None:
            hidden["_env_tools"] = dict.fromkeys(self._env_tools, ())
        with replaced(self, **hidden):
            return super()._tokenize_prompts(prompts)

    def _log_completion_extra(self, column: str, values: list) -> None:
        if column in (*self._table_columns, *self.reward_func_names):
            raise ValueError(
                f"A reward function called log_extra for {column!r}, which is a column of the completions table already: "
                "choose another name."
            )
        super()._log_completion_extra(column, values)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        with replaced(self, reward_funcs=list(map(marking_nan, self.reward_funcs))):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        local = self._local_rows(len(prompts))
        self._rewards = without_infinite(rewards, local, self.reward_func_names, prompts)  # (N, functions)
        metrics = self._metrics["train" if self._is_training else "eval"]
        metrics["rollout/unscored"].append(self._unscored().sum().item())
        return self._rewards

    def _unscored(self) -> Tensor:
        """Which completions no reward function could score, `(N,)`."""
        return self._rewards.isnan().all(dim=1)

    def _generate(self, prompts: list):
        self._is_training = self.model.training  # generation may change it
        self._answers = self._read_answers()  # environments have been reset
        try:
            with (
                replaced(self._tokenizer, parse_response=raising_value_errors(self._tokenizer.parse_response)),
                self.backend.raising_failures(),
            ):
                output = super()._generate(prompts)
            self._generated = output[:3]  # prompts, completions and tool masks, without padding
            return output
        finally:
            if self._turns is not None:
                self._turns.clear()

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        self.backend.check_prompts(prompt_ids)
        if self._turns is None:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        limits = replace(self._rollout_limits(), max_completion_length=sys.maxsize)  # the backend's own limit
        # A prompt that fills the model's context gets one token: TRL knows no completion without any
        room = [max(limits.room(Rollout(ids, {}, [])), 1) for ids in prompt_ids]
        return self._write_turns(range(len(room)), prompt_ids, room, len(room), num_generations)

    def _write_turns(self, rows, contexts, max_tokens, batch_size, num_generations=1):
        generate = super()._generate_single_turn
        return self._turns.write(generate, rows, contexts, max_tokens, batch_size, num_generations)

    def _tool_call_loop(self, prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields):
        if self._turns is None:
            return super()._tool_call_loop(
                prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields
            )
        rollouts = self._start_rollouts(prompt_ids, completion_ids, logprobs)

        def generate(rows, contexts, max_tokens, batch_size):
            self._turns.forget(row for row, rollout in enumerate(rollouts) if rollout.stop_reason)
            return self._write_turns(rows, contexts, max_tokens, batch_size)

        with progress("Rollouts", len(rollouts), "rollout", self.args.disable_tqdm) as bar:
            limits = self._rollout_limits()
            watch = partial(_show_finished, bar)
            loop = ToolLoop(rollouts, generate, self._protocol, self._executor, limits, watch)
            try:
                if self.args.lockstep or self._turns.collective:
                    loop.play_in_lockstep(self._turns.agree)
                else:
                    loop.play(self._turns.seconds)
            finally:
                self._replace_busy_environments()
        self._log_rollouts(loop)
        self._played = rollouts
        return (
            [rollout.tool_mask for rollout in rollouts],
            [self._protocol.completion(rollout.messages) for rollout in rollouts],
            [rollout.completion_ids for rollout in rollouts],
            None if logprobs is None else [rollout.logprobs for rollout in rollouts],
            len(loop.results),
            sum(result.failed for result in loop.results),
            [[] for _ in rollouts],
        )

    def _start_rollouts(self, prompt_ids, completion_ids, logprobs) -> list[Rollout]:
        """Rollouts of a batch, whose first turn is written."""
        rollouts = []
        for i, ids in enumerate(completion_ids):
            tools = {**self._sync_tool_dicts[i], **self._async_tool_dicts[i]}
            environment = self.environments[i] if self.environments else None
            schemas = self.tools if environment is None else self._env_tools[self._batch_environments[i]]
            rollouts.append(Rollout(prompt_ids[i], tools, schemas, environment))
            rollouts[i].add_turn(ids, None if logprobs is None else logprobs[i], self._protocol)
        return rollouts

    def _rollout_limits(self) -> RolloutLimits:
        return RolloutLimits(
            self.max_tool_calling_iterations,
            self.max_completion_length,
            self.backend.max_model_length,
            self.args.max_turn_tokens,
            self.args.max_observation_tokens,
        )

    def _replace_busy_environments(self) -> None:
        """TRL uses environments again; one that an abandoned call is still in is left to that call."""
        for pool in getattr(self, "_environment_pool", {}).values():
            pool[:] = [environment for environment in pool if not self._executor.is_busy(environment)]

    def _log_rollouts(self, loop: ToolLoop) -> None:
        record = RolloutRecord.of(loop, self._executor.num_abandoned, self._turns.tokens_fed)
        metrics = self._metrics["train" if self._is_training else "eval"]
        for name, value in rollout_metrics(gather_object([record])).items():
            metrics[name].append(value)

    @torch.no_grad()
    def play(self, rows: list[dict[str, Any]], greedy: bool = False, num_generations: int = 1) -> list[dict[str, Any]]:
        """
        Roll rows out and score them without training, to evaluate or to look at.

        Args:
            rows (`list[dict]`): Rows as in the datasets.
            greedy (`bool`): Whether to take the most likely token instead of sampling.
            num_generations (`int`): Rollouts of each row, which form a group; a group of one has no turn credit.

        On several processes each passes as many rows, and gets the rollouts of all.

        Returns:
            `list[dict]`: for each rollout, row by row, its `prompt`, `completion` and `rewards` by name, and lists of one number per turn: what
            the estimator gives each turn of `turn_advantages`, `clip_scale` and its own `columns`, and with beliefs
            `information_gain`.
        """
        logs = {"prompt": [], "completion": [], "images": [], "advantages": deque()}
        logs |= {"rewards": defaultdict(list), "extra": defaultdict(list)}
        is_training = self.model.training
        self.model.eval()
        try:
            with (
                replaced(self, _logs=logs, _metrics={"eval": defaultdict(list)}, num_generations_eval=num_generations),
                self.backend.greedy() if greedy else nullcontext(),
            ):
                size = max(self.args.per_device_eval_batch_size // num_generations, 1)
                for start in range(0, len(rows), size):
                    batch = [dict(row) for row in rows[start : start + size] for _ in range(num_generations)]
                    self._generate_and_score_completions(batch)
        finally:
            self.model.train(is_training)
        columns = {"prompt": logs["prompt"], "completion": logs["completion"]}
        # A column that a reward function logs now and then belongs to no row
        columns |= {name: column for name, column in logs["extra"].items() if len(column) == len(logs["prompt"])}
        return [
            {name: column[i] for name, column in columns.items()}
            | {"rewards": {name: column[i] for name, column in logs["rewards"].items()}}
            for i in range(len(logs["prompt"]))
        ]

    # ---- credit ------------------------------------------------------------------------------------------------

    @property
    def _measures_beliefs(self) -> bool:
        return "beliefs" in self.estimator.signals

    @property
    def _table_columns(self) -> tuple[str, ...]:
        """Columns of the completions table that are no reward function's."""
        return (*TABLE_COLUMNS, *self.estimator.columns)

    def _set_up_credit(self) -> None:
        if self._measures_beliefs:
            model, tokenizer, length = self.model, self._tokenizer, context_length(self)
            self._scorer = BeliefScorer(model, tokenizer, self.accelerator, self.args, length)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.args.answer_column not in self._signature_columns:
            self._signature_columns.append(self.args.answer_column)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        training = self.model.training  # generation may change it
        inputs = [dict(row) for row in inputs]  # which environments may add their answers to
        with replaced(self, _inputs=inputs, _answers=None, _played=None, _generated=None, _rewards=None):
            with replaced(self, _rides=self._measures_beliefs and self._beliefs_ride(), _riding=None):
                batch = super()._generate_and_score_completions(inputs)
                turns = self._turns_of(batch, training)
            credit = self.estimator.credit(turns, self.args.options_for(self.estimator))
            check_credit(self.estimator, turns, credit)
            self._add_credit(batch, turns, credit)
            self._log_credit(batch, turns, credit, training)
            if training and self._recorder is not None:
                self._record_turns(inputs, turns, credit)
        return batch

    def _turns_of(self, batch: dict[str, Any], training: bool) -> Turns:
        """The turns of all processes' completions, for a group may span processes."""
        masks = batch["completion_mask"], batch.get("tool_mask")
        batch["turn_ids"], ends = turn_ids(*masks), observation_ends(*masks)
        num_turns, num_tool_turns = batch["turn_ids"].amax(dim=1) + 1, (ends >= 0).sum(dim=1)
        ended = [rollout.stop_reason == "answered" for rollout in self._played or ()] or [True] * len(num_turns)
        answered = (num_turns > num_tool_turns) & torch.tensor(ended, device=num_turns.device)
        local = batch["advantages"], num_turns, num_tool_turns, answered
        num_generations = self.num_generations if training else self.num_generations_eval
        signals = {"beliefs": self._measure_beliefs(batch, ends, training)} if self._measures_beliefs else {}
        outcome, num_turns, num_tool_turns, answered = self.accelerator.gather(local)
        rewards = self._total_rewards()
        if self.args.skip_empty_updates and self.args.multi_objective_aggregation == "sum_then_normalize":
            outcome = without_rounding(outcome, rewards.isnan(), num_generations)
        return Turns(outcome, rewards, num_turns, num_tool_turns, num_generations, signals, answered)

    def _measure_beliefs(self, batch: dict[str, Any], ends: Tensor, training: bool) -> Tensor:
        """Beliefs of all processes, `(N, K + 1)`."""
        if self._riding is None:
            plan = self._scorer.plan(batch, ends, self._answers)
            size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
            with profiling_context(self, "information_gain"):
                beliefs = self._scorer.measure(self.model, plan, size)
        else:
            plan, beliefs = self._riding.plan, torch.cat(self._riding.beliefs)
        beliefs, keys = self.accelerator.gather((beliefs, plan.keys))
        return shared_beliefs(beliefs.exp() if self.args.belief_measure == "prob" else beliefs, keys)

    def _add_credit(self, batch: dict[str, Any], turns: Turns, credit: TurnCredit) -> None:
        """What the loss reads, and with beliefs the gains, of this process's completions."""
        ids = batch["turn_ids"]
        local = self._local_rows(len(ids))
        batch["advantages"] = advantages = credit.advantages[local]
        if advantages.dim() == 2:
            batch["advantages"] = spread_turns(advantages, ids, fill=0.0)
        if credit.clip_scale is not None:
            batch["clip_scale"] = spread_turns(credit.clip_scale[local], ids, fill=1.0)
        if "beliefs" in turns.signals:
            batch["information_gain"] = information_gain(turns.signals["beliefs"])[local]

    def _read_answers(self) -> list[str | None] | None:
        """The true answers of a batch, its own or its environments'; `None` if no belief in them is asked for."""
        column, needed = self.args.answer_column, self._measures_beliefs
        if self.environments:
            add_answers(self._inputs, self.environments, column, needed)
        if not needed:
            return None
        return [scored_answer(row.get(column), f"{column!r} of {row.get('prompt')!r}") for row in self._inputs]

    def _total_rewards(self) -> Tensor:
        """Weighted sum of the rewards of all processes' completions, NaN for those without one, `(N,)`."""
        weighted = self._rewards * self.reward_weights.to(self._rewards.device)
        return weighted.nansum(dim=1).masked_fill(self._unscored(), math.nan)

    def _local_rows(self, size: int) -> slice:
        """This process's rows among those of all processes."""
        return slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)

    def _beliefs_ride(self) -> bool:
        """Whether beliefs are scored along with the old log-probabilities, if TRL computes these."""
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        if self.args.every_update_is_on_policy and not corrected:
            return False
        if obstacle := self._scorer.riding_obstacle(self.model):
            logger.warning_once(
                f"Information gain takes forwards of its own, beside that of the old log-probabilities: {obstacle}."
            )
        return not obstacle

    def _ride(self, model, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int) -> RidingModel:
        """The policy, scoring beliefs along with the log-probabilities of a generation batch."""
        prompt, completion = slice(None, -logits_to_keep), slice(-logits_to_keep, None)
        batch = {
            "prompt_ids": input_ids[:, prompt],
            "prompt_mask": attention_mask[:, prompt],
            "completion_ids": input_ids[:, completion],
            "completion_mask": attention_mask[:, completion],
        }
        tool_mask = torch.ones_like(batch["completion_mask"])
        _, _, masks = self._generated
        if masks is not None:
            for row, mask in zip(tool_mask, masks, strict=True):
                row[: len(mask)] = torch.as_tensor(mask)
        plan = self._scorer.plan(batch, observation_ends(batch["completion_mask"], tool_mask), self._answers)
        return self._scorer.ride(model, plan)

    def _log_credit(self, batch: dict[str, Any], turns: Turns, credit: TurnCredit, training: bool) -> None:
        metrics = self._metrics["train" if training else "eval"]
        for name, value in credit_metrics(turns, credit).items():
            metrics[name].append(value)
        if "beliefs" in turns.signals:
            unanswerable = torch.tensor([float(self._answers.count(None))], device=turns.outcome.device)
            metrics["information_gain/rows_without_answer"].append(self.accelerator.gather(unanswerable).sum().item())
        if credit.advantages.dim() == 2:
            self._log_mean_advantages(batch["advantages"], batch["turn_ids"])
        for column, values in turn_table(turns, credit).items():
            self._logs["extra"][column].extend(rows_of_turns(values, turns.num_turns))

    def _log_mean_advantages(self, advantages: Tensor, ids: Tensor) -> None:
        """Replace the outcome advantages that TRL logged by means over the tokens that are trained on."""
        per_completion = advantages.sum(dim=1) / (ids >= 0).sum(dim=1).clamp(min=1)  # advantages are 0 off-turn
        per_completion, logged = self.accelerator.gather(per_completion), self._logs["advantages"]
        for _ in range(min(len(per_completion), len(logged))):
            logged.pop()
        logged.extend(per_completion.tolist())

    # ---- loss and updates --------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        inputs = dict(inputs)  # TRL uses the batch again, and the turn level changes what it says of the old policy
        turn_level = self.args.importance_sampling_level == "turn"
        scale = inputs.get("clip_scale", 1.0)
        with replaced(
            self,
            epsilon_low=self.epsilon_low * scale,
            epsilon_high=self.epsilon_high * scale,
            importance_sampling_level="token" if turn_level else self.args.importance_sampling_level,
            _loss_inputs=inputs if turn_level else None,
        ):
            return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        batch = input_ids, attention_mask, logits_to_keep
        if self._rides and self._riding is None:  # TRL's first are the old log-probabilities
            model = self._riding = self._ride(model, *batch)
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(model, *batch, *args, **kwargs)
        batch = self._loss_inputs
        if batch is not None and "old_per_token_logps" in batch:
            old = batch["old_per_token_logps"]
            batch["old_per_token_logps"] = turn_level_old_logps(logps, old, batch["turn_ids"])
        return logps, entropies, aux_loss

    def _set_up_updates(self) -> None:
        if self.is_deepspeed_enabled:
            logger.warning(
                "DeepSpeed keeps gradients to itself: skip_empty_updates has no effect, and updates whose gradient is not "
                "finite are not left out."
            )
            return
        self.skipped_updates = SkipUpdates(
            self.accelerator,
            lambda name, value: self._metrics["train"][name].append(value),
            self.args.skip_empty_updates,
        )
        self.add_callback(self.skipped_updates)

    # ---- completions that are logged ---------------------------------------------------------------------------

    def log(self, logs, start_time=None):
        # TRL's tables take one type a column
        table = completions_table(self._logs) if self.log_completions else self._logs
        with (
            replaced(self, _logs=table),
            replaced(grpo_trainer, print_prompt_completions_sample=_print_plainly),
        ):
            super().log(logs, start_time)

    # ---- training as a whole -----------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        check_trainable(self.model)  # a frozen model can be played
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = last_checkpoint(self.args.output_dir)
            if checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint is True, and {self.args.output_dir} has no complete checkpoint."
                )
        elif checkpoint and (damage := damage_of(checkpoint)):
            raise ValueError(
                f"resume_from_checkpoint is {str(checkpoint)!r}, which is not a complete checkpoint: {damage}. Name another, or "
                "True for the last complete one."
            )
        start = steps_of(checkpoint) if checkpoint else None  # the folder may be rotated away
        output = super().train(checkpoint, trial, ignore_keys_for_eval)
        if output.global_step == start:
            logger.warning(
                f"Nothing was left to train: {checkpoint} is at step {output.global_step} of {self.state.max_steps}. To go on, "
                "set max_steps or num_train_epochs higher."
            )
        return output

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # transformers looks only after a step
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- records -----------------------------------------------------------------------------------------------

    def _set_up_records(self) -> None:
        self._recorder = None
        if self.args.turn_records:
            self._recorder = TurnRecorder(self.args, self.accelerator)
            self.add_callback(self._recorder)

    def _record_turns(self, inputs: list[dict[str, Any]], turns: Turns, credit: TurnCredit) -> None:
        local = self._local_rows(len(inputs))
        prompts, completions, masks = self._generated
        given, total = self._rewards[local], turns.rewards[local].tolist()
        rollouts = []
        for i, row in enumerate(inputs):
            answer = row.get(self.args.answer_column)
            played = self._played[i] if self._played else None
            rollouts.append(
                RecordedRollout(
                    prompts[i],
                    completions[i],
                    masks[i] if masks else None,
                    recorded_answer(answer),
                    dict(zip(self.reward_func_names, given[i].tolist(), strict=True)),
                    total[i],
                    played.called if played else [],
                    played.stop_reason if played else None,
                )
            )
        columns = credit_columns(turns, credit, local, (self.epsilon_low, self.epsilon_high))
        rows = turn_rows(rollouts, columns, local.start, self.num_generations, self._tokenizer.batch_decode)
        self._recorder.record(rows, self.state)


def _thread_initializer(device: torch.device) -> Callable[[], None] | None:
    """Selects this thread's CUDA device in another thread; the accelerator's own device may have no index."""
    return partial(torch.cuda.set_device, torch.cuda.current_device()) if device.type == "cuda" else None


def _show_finished(bar: Any, finished: int) -> None:
    bar.update(finished - bar.n)


def _print_plainly(*args: Any, **kwargs: Any) -> None:
    """TRL's table of completions, which cannot steer the terminal."""
    print_prompt_completions_sample(*plain_parts(args), **plain_parts(kwargs))


def _load_tokenizer(model: Any, args: A2TGPOConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, of a model for pictures or audio too."""
    return AutoTokenizer.from_pretrained(
        model if isinstance(model, str) else get_config_model_id(model.config),
        revision=(args.model_init_kwargs or {}).get("revision"),
        truncation_side="left",
        padding_side="left",
        trust_remote_code=args.trust_remote_code,
    )
