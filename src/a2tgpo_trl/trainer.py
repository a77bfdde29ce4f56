"""[`A2TGPOTrainer`]: TRL's `GRPOTrainer` with a multi-turn tool loop and credit for each turn."""

import textwrap
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from random import Random
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.utils import logging
from trl import GRPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import get_config_model_id

from . import checks
from .batch import GenerationBatch
from .callbacks.recorder import TurnRecorder
from .callbacks.run_state import RunState
from .callbacks.sharded_head import GatherHead
from .callbacks.skip_updates import SkipUpdates
from .config import A2TGPOConfig
from .credit import check_credit, scheduled
from .functional import turn_level_old_logps
from .integrations.checkpoints import checkpoint_to_resume, load_renamed, mark_incomplete, steps_of
from .integrations.loading import load_processing_class
from .integrations.names import distinct
from .integrations.plain import print_plainly
from .integrations.replaced import replaced
from .records.logs import log_credit
from .records.metrics import RolloutRecord, rollout_metrics
from .records.rows import credit_columns, recorded_answer
from .records.tables import TABLE_COLUMNS, completions_table
from .rollout import (
    Rollout,
    TagProtocol,
    add_answers,
    raising_value_errors,
    read_rollouts,
    with_named_resets,
    without_state_keys,
)
from .rollout.generation.backends import backend_of
from .rollout.pictures import (
    PictureReader,
    check_pictures_are_read,
    pictures_in,
    rows_with_pictures,
    without_empty_pictures,
)
from .rollout.player import RolloutPlayer, make_protocol
from .rollout.tree import TreePlan
from .signals.beliefs.signal import Beliefs
from .signals.finite_rewards import marking_nan, without_infinite
from .signals.states import States
from .signals.tree import Tree
from .signals.turn_rewards import TurnRewards, functions_of
from .signals.values import Values

logger = logging.get_logger(__name__)

SIGNALS = {"beliefs": Beliefs, "turn_rewards": TurnRewards, "states": States, "tree": Tree, "values": Values}
"""By the name under which estimators ask for them."""

TURN_RATIOS = {"turn": "mean", "turn_product": "sum"}
"""Levels of `importance_sampling_level` that are a turn's → how the log ratios of its tokens are joined."""


class A2TGPOTrainer(GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] that plays multi-turn rollouts and gives each turn its own advantage, importance ratio and clip
    range, from how much the turn raised the policy's belief in the true answer (A²TGPO, arXiv 2605.06200).

    It takes the arguments of [`~trl.GRPOTrainer`] in their order; what differs is listed.

    Args:
        reward_funcs (`Callable`, model or list of them):
            As TRL's. Functions also get `turns`: for each completion the list of its [`~rollout.Turn`]s.
        args ([`A2TGPOConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            With the columns `prompt` and, where the estimator reads beliefs, `args.answer_column`. Environments may give the
            answers instead: the attribute of that name, which `reset` sets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`], *optional*):
            A tokenizer, or with pictures in prompts or in what tools return a processor of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 or
            Gemma 3. Default: the model's processor if the first row of a dataset has pictures, else its tokenizer, of a model for
            pictures or audio too, which is then trained on text.
        tools (list of `Callable`, *optional*):
            Typed, documented functions, which return text or pictures, called by the chat template's tool calls or by text tags, see
            `args.tool_protocol`.
        turn_reward_funcs (`Callable`, model, name of a model, or list of them, *optional*):
            Turn rewards, for the estimators that read them: functions `(turns, **columns)`, coroutine functions too, that
            return for each rollout a list with a number, or `None`, for each turn; and process reward models.

    Raises:
        TypeError: If `args` is no [`A2TGPOConfig`], `processing_class` is a processor of another family, or there are pictures in the
            data and it is a tokenizer.
        ValueError: If there is sound or video in the data, the answer column is missing, a tool lacks types or a docstring, or neither protocol can work.

    What it overrides of TRL's, and why:

    - `_tokenize_prompts`: with text tags, the chat template is not to render the tools.
    - `_generate`: reads the answers once environments are reset; keeps what was played.
    - `_generate_single_turn`: turns end at tags and at limits of their own, and what was read before is kept.
    - `_tool_call_loop`: the loop of this library, in which tools run beside generation.
    - `_get_per_token_logps_and_entropies`: without what an image processor returns for the processor alone, and
      without pictures for a micro-batch that has none.
    - `_calculate_rewards`: gives reward functions the turns; NaN and infinite rewards count as missing.
    - `_generate_and_score_completions`: measures signals, and adds turn credit.
    - `_compute_loss`: the turn's ratio and clip range, and the loss of signals that are learned.
    - `create_optimizer`, `_save`, `_load_from_checkpoint`, `_load_best_model`: what is learned beside the policy, such as a
      critic; weights that a checkpoint has under older names.
    - `_save_checkpoint`: one that is written over does not pass for complete meanwhile.
    - `_save_rng_state`, `_load_rng_state`: the rollouts that are being trained on, and what else a cut would lose.
    - `_set_signature_columns_if_needed`: keeps the answer column.
    - `_log_completion_extra`, `log`: names that are taken are refused, and tables take values of any type.
    - `train`, `_run_epoch`: resume from complete checkpoints alone; a finished run trains no further.
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
        turn_reward_funcs=None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = A2TGPOConfig(f"{name.split('/')[-1]}-A2TGPO")
        if processing_class is None:
            pictures = checks.has_pictures(train_dataset, eval_dataset)
            processing_class = load_processing_class(model, args, pictures)
        tools = tools or None
        checks.check_arguments(args, train_dataset, eval_dataset, processing_class, tools or [], environment_factory)
        protocol = checks.checked_protocol(args, processing_class, train_dataset, tools or [], environment_factory)
        checks.check_columns(args.estimator)
        self.turn_reward_funcs = functions_of(turn_reward_funcs)
        checks.check_turn_rewards(args, self.turn_reward_funcs)
        checks.check_tree(args, protocol, rollout_func)
        checks.check_reference(args, model, peft_config)
        checks.warn_of_settings(args, protocol)
        # GRPOTrainer takes tools for calls of the chat template, which may not know any
        hides_tools = protocol == "tags" and environment_factory is None
        self.estimator = args.estimator
        self._batch: GenerationBatch | None = None
        # Calls by tags are not parsed by the chat template, which TRL need not know then
        unparsed = {"add_response_schema": lambda it: it, "is_chat_template_prefix_preserving": lambda it: True}
        with replaced(grpo_trainer, **unparsed if protocol == "tags" else {}):
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
                tools=None if hides_tools else tools,
                rollout_func=rollout_func,
                environment_factory=with_named_resets(environment_factory),
            )
        if hides_tools:
            self.tools = self._standalone_tools = list(tools)
        self.reward_func_names = distinct(self.reward_func_names, self._table_columns)
        self.backend = backend_of(self)
        self._pictures = self._make_picture_reader()
        self._player = self._make_player(protocol, checks.prompts_are_conversational(train_dataset))
        asked_for = {*args.signals, *(["turn_rewards"] if self.turn_reward_funcs else [])}
        asked_for |= {"tree"} if args.tree_chains is not None else set()
        self.signals = {name: signal(self) for name, signal in SIGNALS.items() if name in asked_for}
        self._add_callbacks()

    def _make_player(self, protocol: str | None, conversational: bool) -> RolloutPlayer | None:
        """Plays rollouts with tools; `None` if TRL plays them, or there are no tools."""
        for tools in getattr(self, "_env_tools", {}).values():
            checks.check_tool_names(tools)
        if protocol is None:
            return None
        if self.args.tool_loop == "trl":
            config = self.model.config.get_text_config() if self._is_vlm else self.model.config  # as TRL's loop
            checks.check_trls_loop(self.args, config, self.tools)
            return None
        for name, tools in getattr(self, "_env_tools", {}).items():
            self._env_tools[name] = without_state_keys(tools, self._standalone_tools)
        self.tools = without_state_keys(self.tools or [], self._standalone_tools)
        checks.check_tree_tools(self.args, self.tools)
        if protocol == "tags" and self.environment_factories is not None:
            checks.check_tags_are_told(self.args, self.processing_class, self.train_dataset, self.tools)
        player = RolloutPlayer(self, make_protocol(self, protocol, conversational))
        if self.tools and self.args.max_observation_tokens is not None:
            checks.check_observation_limit(self.args.max_observation_tokens, player.protocol, self.tools[0].__name__)
        return player

    def _make_picture_reader(self) -> PictureReader | None:
        if not self._is_vlm:
            return None
        if sharding := self.backend.sharding:
            logger.warning(
                f"With {sharding} each process needs a picture in each of its micro-batches: one without runs no vision part, and the "
                "others wait for it."
            )
        reader = PictureReader(self.processing_class)
        self._image_pad_token_id = reader.image_token_id  # TRL knows Qwen's alone
        self._tokenizer.padding_side = "left"  # TRL has the processor pad prompts, and takes them for padded so
        self.backend.never_write(reader.placeholders)
        return reader

    @property
    def _decode(self) -> Callable[[list[list[int]]], list[str]]:
        """Texts of lists of tokens, in which one character stands for each picture."""
        return self._tokenizer.batch_decode if self._pictures is None else self._pictures.decode

    def _add_callbacks(self) -> None:
        if self.is_deepspeed_enabled:
            logger.warning(
                "DeepSpeed keeps gradients to itself: skip_empty_updates has no effect, and updates whose gradient is not "
                "finite are not left out."
            )
        else:
            log_metric = lambda name, value: self._metrics["train"][name].append(value)  # noqa: E731
            self.skipped_updates = SkipUpdates(self.accelerator, log_metric, self.args.skip_empty_updates)
            self.add_callback(self.skipped_updates)
        if self.is_fsdp_enabled:
            self.add_callback(GatherHead())
        self._recorder = TurnRecorder(self.args, self.accelerator) if self.args.turn_records else None
        if self._recorder is not None:
            self.add_callback(self._recorder)
        parts = {"skipped_updates": getattr(self, "skipped_updates", None), "recorder": self._recorder}
        self._run_state = RunState(self, {name: part for name, part in parts.items() if part is not None})
        self.add_callback(self._run_state)

    # ---- rollouts ----------------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list):
        checks.check_prompts(prompts, self.processing_class)
        if self._player is None or not isinstance(self._player.protocol, TagProtocol):
            return super()._tokenize_prompts(prompts)
        # Tags are described by the prompt's author, so the template is not to render the tools' schemas
        hidden = {"tools": []}
        if self.environment_factories is not None:
            hidden["_env_tools"] = dict.fromkeys(self._env_tools, ())
        with replaced(self, **hidden):
            return super()._tokenize_prompts(prompts)

    def _generate(self, prompts: list):
        batch = self._batch
        if self.environments:  # they have been reset
            add_answers(batch.rows, self.environments, self.args.answer_column, "beliefs" in self.signals)
        for signal in self.signals.values():
            signal.prepare(batch)
        parse = raising_value_errors(self._tokenizer.parse_response)
        try:
            with replaced(self._tokenizer, parse_response=parse), self.backend.raising_failures():
                output = super()._generate(prompts)
        finally:
            if self._player is not None:
                self._player.turns.clear()
        prompt_ids, completion_ids, tool_masks, completions, *_ = output
        if not batch.rollouts:
            batch.rollouts = read_rollouts(prompt_ids, completion_ids, tool_masks, completions, self._tokenizer)
        for rollout, prompt, completion in zip(batch.rollouts, prompts, completions, strict=True):
            rollout.prompt, rollout.completion = prompt, completion
            rollout.images = pictures_in(prompt if isinstance(prompt, list) else [])
        *others, images, tool_images = output
        # TRL has None for a rollout without pictures, beside which no processor takes others, and where a rollout_func wrote them
        images = [rollout.all_images for rollout in batch.rollouts]
        images = images if any(images) else None
        # With tools TRL is to find the placeholders in the tokens: it would render prompts otherwise than they were written
        return *others, images, (images or []) if self.tools and self._is_vlm else tool_images

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        self.backend.check_prompts(prompt_ids)
        generate = self._generate_in_mode
        if self._player is None:
            return generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
        pictures = _by_row(images, len(prompt_ids))
        return self._player.first_turns(generate, prompt_ids, pictures, num_generations, self._tree_plan())

    def _generate_in_mode(self, *args):
        """TRL's generation, where continuous batching would leave the model in training mode."""
        is_training = self.model.training
        output = super()._generate_single_turn(*args)
        self.model.train(is_training)
        return output

    def _tool_call_loop(self, prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields):
        if self._player is None:
            return super()._tool_call_loop(
                prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields
            )
        plan = self._tree_plan()
        pictures = [pictures_in(prompt if isinstance(prompt, list) else []) for prompt in prompts]
        loop = self._player.play(self._generate_in_mode, prompt_ids, completion_ids, logprobs, pictures, plan)
        record = RolloutRecord.of(loop, self._player.executor.num_abandoned, self._player.turns.tokens_fed)
        for name, value in rollout_metrics(gather_object([record]), plan is not None).items():
            self._metrics[self._batch.mode][name].append(value)
        self._batch.rollouts = rollouts = loop.rollouts
        return (
            [rollout.tool_mask for rollout in rollouts],
            [self._player.protocol.completion(rollout.messages) for rollout in rollouts],
            [rollout.completion_ids for rollout in rollouts],
            None if logprobs is None else [rollout.logprobs for rollout in rollouts],
            len(loop.results),
            sum(result.failed for result in loop.results),
            [[image for turn in rollout.turns for image in turn.images] for rollout in rollouts],
        )

    def _tree_plan(self) -> TreePlan | None:
        """How the batch's rollouts become trees; `None` if they are chains, as all are that are not trained on."""
        args = self.args
        if args.tree_chains is None or not self._batch.training:
            return None
        rng = Random(args.seed + self.state.global_step)
        by_surprisal = args.tree_choice == "surprisal"
        shape = self.num_generations, args.tree_chains, args.tree_expansions
        return TreePlan(*shape, by_surprisal, args.tree_sibling_penalty, rng)

    @torch.no_grad()
    def play(self, rows: list[dict[str, Any]], greedy: bool = False, num_generations: int = 1) -> list[Rollout]:
        """
        Roll rows out and score them without training, to evaluate or to look at.

        Args:
            rows (`list[dict]`): Rows as in the datasets.
            greedy (`bool`): Whether to take the most likely token instead of sampling.
            num_generations (`int`): Rollouts of each row, which form a group; a group of one has no turn credit.

        On several processes each passes as many rows, and gets the rollouts of all.

        Returns:
            `list[Rollout]`: row by row, with their turns, rewards and credit.
        """
        logs = {
            name: deque(maxlen=0) for name in ("prompt", "completion", "images", "advantages")
        }  # which rollouts hold
        logs |= {"rewards": defaultdict(list), "extra": defaultdict(list)}
        played, is_training = [], self.model.training
        self.model.eval()
        try:
            with (
                replaced(self, _logs=logs, _metrics={"eval": defaultdict(list)}, num_generations_eval=num_generations),
                replaced(self.args, report_to=[]),  # to which TRL's profiling would log, whether or not there is a run
                self.backend.greedy() if greedy else nullcontext(),
                self._gathered_before_training(),
            ):
                size = max(self.args.per_device_eval_batch_size // num_generations, 1)
                for start in range(0, len(rows), size):
                    batch = self._roll_out([row for row in rows[start : start + size] for _ in range(num_generations)])
                    played += gather_object(batch.rollouts)
        finally:
            self.model.train(is_training)
        for column in logs["extra"].keys() - {*self._table_columns}:
            if len(logs["extra"][column]) == len(played):  # one that is logged now and then belongs to no row
                for rollout, value in zip(played, logs["extra"][column], strict=True):
                    rollout.extra[column] = value
        return played

    @contextmanager
    def _gathered_before_training(self):
        """ZeRO-3 spreads weights as they are loaded, and no engine gathers them layer by layer before there is an optimizer."""
        if self.deepspeed is not None or not self._dist.is_zero3:
            yield
            return
        whole = self._dist.gather_params(list(self.model.parameters()))
        with whole, replaced(self.args, ds3_gather_for_generation=False):
            yield

    # ---- rewards, signals and credit ---------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        if self._pictures is not None:
            model, kwargs = partial(without_empty_pictures, model), self._pictures.for_model(kwargs)
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        checks.check_reward_columns(inputs[0], "The batch, or what rollout_func returned for it,")
        inputs = [row | {"turns": rollout.turns} for row, rollout in zip(inputs, self._batch.rollouts, strict=True)]
        with replaced(self, reward_funcs=list(map(marking_nan, self.reward_funcs))):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        batch = self._batch
        batch.rewards = without_infinite(rewards, batch.local, self.reward_func_names, prompts)
        self._metrics[batch.mode]["rollout/unscored"].append(batch.unscored.sum().item())
        return batch.rewards

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.args.answer_column not in self._signature_columns:
            self._signature_columns.append(self.args.answer_column)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self._roll_out(inputs).tensors

    def _roll_out(self, rows: list[dict[str, Any]]) -> GenerationBatch:
        """Generate, score and credit the rollouts of rows."""
        training = self.model.training  # generation may change it
        num_generations = self.num_generations if training else self.num_generations_eval
        if self._is_vlm:
            rows = rows_with_pictures(rows)
        outer, batch = self._batch, GenerationBatch(rows, training, num_generations, self.accelerator)
        self._batch = batch
        try:
            with ExitStack() as stack:
                for signal in self.signals.values():
                    stack.enter_context(signal.while_scoring(batch))
                stack.enter_context(
                    replaced(self, log_multimodal=False)
                )  # TRL gathers on processes that have pictures alone
                batch.tensors = super()._generate_and_score_completions(batch.rows)
        finally:
            self._batch = outer  # a reward function may play rollouts of its own
        if self._pictures is not None and self.log_multimodal:
            self._logs["images"].extend(gather_object([rollout.all_images for rollout in batch.rollouts]))
        check_pictures_are_read(batch.rollouts, batch.tensors)
        self._give_credit(batch)
        if self._recorder is not None or not training:
            answers = [recorded_answer(row.get(self.args.answer_column)) for row in batch.rows]
            columns = credit_columns(batch.turns, batch.credit, (self.epsilon_low, self.epsilon_high))
            batch.finish_rollouts(self.reward_func_names, answers, columns)
        if self._recorder is not None and training:
            self._recorder.record(batch, self._decode, self.state)
        return batch

    def _give_credit(self, batch: GenerationBatch) -> None:
        """Measure the signals of a batch that is scored, and give its turns their credit."""
        args = self.args
        exact_zeros = args.skip_empty_updates and args.multi_objective_aggregation == "sum_then_normalize"
        batch.read_turns(
            self.signals, self.reward_weights, {*self.eos_token_ids, self._tokenizer.pad_token_id}, exact_zeros
        )
        progress = self.state.global_step / max(self.state.max_steps, 1)
        options = scheduled(args.options_for(self.estimator), args.turn_advantage_schedule, progress, batch.turns)
        credit = self.estimator.credit(batch.turns, options)
        check_credit(self.estimator, batch.turns, credit)
        batch.take_credit(credit, once_for_all_leaves=args.tree_shared_turns == "once")
        log_credit(batch, self._metrics[batch.mode], self._logs)

    # ---- loss --------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        scale = inputs.get("clip_scale", 1.0)
        settings = {"epsilon_low": self.epsilon_low * scale, "epsilon_high": self.epsilon_high * scale}
        if reduction := TURN_RATIOS.get(self.args.importance_sampling_level):
            inputs = dict(inputs)  # TRL uses the batch again, and these levels change what it says of the old policy
            compute = partial(_with_turn_level_old_logps, self._get_per_token_logps_and_entropies, inputs, reduction)
            settings |= {"importance_sampling_level": "token", "_get_per_token_logps_and_entropies": compute}
        with ExitStack() as stack:
            for signal in self.signals.values():
                stack.enter_context(signal.while_computing_loss(model))
            with replaced(self, **settings):
                loss = super()._compute_loss(model, inputs)
        losses = [signal.loss(inputs) for signal in self.signals.values()]
        return sum((more for more in losses if more is not None), start=loss)

    # ---- logs --------------------------------------------------------------------------------------------------

    @property
    def _table_columns(self) -> tuple[str, ...]:
        """Columns of the completions table that are no reward function's."""
        return (*TABLE_COLUMNS, *self.estimator.columns)

    def _log_completion_extra(self, column: str, values: list) -> None:
        if column in (*self._table_columns, *self.reward_func_names):
            raise ValueError(
                f"A reward function called log_extra for {column!r}, which is a column of the completions table already: "
                "choose another name."
            )
        super()._log_completion_extra(column, values)

    def log(self, logs, start_time=None):
        # TRL's tables take one type a column
        table = completions_table(self._logs) if self.log_completions else self._logs
        with replaced(self, _logs=table), replaced(grpo_trainer, print_prompt_completions_sample=print_plainly):
            super().log(logs, start_time)

    # ---- what is learned beside the policy ---------------------------------------------------------------------

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for group in (group for signal in self.signals.values() for group in signal.param_groups()):
            if id(group["params"][0]) not in known:  # a trainer may train again
                optimizer.add_param_group(group)
        return optimizer

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        for signal in self.signals.values() if self.args.should_save else ():
            signal.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if not self._reads_renamed(model or self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        for signal in self.signals.values():
            signal.load(resume_from_checkpoint)

    def _load_best_model(self):
        if not self._reads_renamed(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()
        for signal in self.signals.values():
            signal.load(self.state.best_model_checkpoint)

    def _reads_renamed(self, model, checkpoint) -> bool:
        """Whether weights had other names, and are read. FSDP and DeepSpeed keep checkpoints of their own, under the model's names."""
        keep_their_own = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not keep_their_own and load_renamed(model, checkpoint)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        if self.args.should_save:  # the process that writes the state takes the old one out
            mark_incomplete(self._get_output_dir(trial), self.state.global_step)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self._run_state.save(output_dir)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        self._run_state.load(checkpoint)

    # ---- training as a whole -----------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        checks.check_trainable(self.model)  # a frozen model can be played
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
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


def _with_turn_level_old_logps(
    compute: Callable, inputs: dict[str, Any], reduction: str, *args: Any, **kwargs: Any
) -> Any:
    """TRL's log-probabilities; with them the old ones in `inputs` become such that a token's ratio is its turn's."""
    logps, entropies, aux_loss = compute(*args, **kwargs)
    if (old := inputs.get("old_per_token_logps")) is not None:
        inputs.setdefault("sampling_per_token_logps", old)  # which TRL's off_policy_mask_threshold sums up
        inputs["old_per_token_logps"] = turn_level_old_logps(logps, old, inputs["turn_ids"], reduction)
    return logps, entropies, aux_loss


def _by_row(images: list[list | None] | None, num_rows: int) -> list[list]:
    return [[] for _ in range(num_rows)] if images is None else [row or [] for row in images]
