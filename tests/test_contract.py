"""The contract with TRL: what we override, call and read of `GRPOTrainer` is as it was in 1.16. All of it is private."""

import ast
import importlib
import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

import a2tgpo_trl.trainer
import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from conftest import search

# Parameters in their order, with defaults where there are any
OVERRIDDEN = {
    "__init__": "self model reward_funcs=None args=None train_dataset=None eval_dataset=None processing_class=None "
    "reward_processing_classes=None callbacks=None optimizers=(None,None) quantization_config=None peft_config=None "
    "tools=None rollout_func=None environment_factory=None",
    "_set_signature_columns_if_needed": "self",
    "_tokenize_prompts": "self prompts",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep batch_size=None "
    "compute_entropy=False compute_aux_loss=False pixel_values=None image_grid_thw=None num_images=None "
    "pixel_attention_mask=None spatial_shapes=None num_tiles=None image_sizes=None token_type_ids=None "
    "mm_token_type_ids=None image_position_ids=None",
    "_generate": "self prompts",  # calls three of the other methods
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations has_tool_images=False",
    "_tool_call_loop": "self prompts prompt_ids completion_ids completions logprobs images multimodal_fields",
    "_generate_and_score_completions": "self inputs",
    "_compute_loss": "self model inputs",
    "create_optimizer": "self model=None",  # this one and the next two of transformers' Trainer
    "_save": "self output_dir=None state_dict=None",
    "_load_from_checkpoint": "self resume_from_checkpoint model=None",
    "_load_best_model": "self",
    "_save_checkpoint": "self model trial",
    "_save_rng_state": "self output_dir",  # this one and the next of transformers' Trainer
    "_load_rng_state": "self checkpoint",
    "log": "self logs start_time=None",
    "train": "self resume_from_checkpoint=None trial=None ignore_keys_for_eval=None",
    "_run_epoch": "self model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval "
    "start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",  # of transformers' Trainer
    "_log_completion_extra": "self column values",
}
CALLED = {
    "_get_tool_suffix_ids": "self tool_messages",
}
FUNCTIONS = {
    "trl.chat_template_utils.add_response_schema": "processing_class",
    "trl.chat_template_utils.parse_response": "tokenizer ids prefix=None tools=None",
    "trl.chat_template_utils.supports_tool_calling": "processing_class",
    "trl.data_utils.is_conversational": "example",
    "trl.extras.profiling.profiling_context": "trainer name",
    "trl.generation.vllm_generation.extract_logprobs": "all_outputs",
    "trl.trainer.utils.get_config_model_id": "config",
    "trl.trainer.utils.is_async_callable": "func",
    "trl.trainer.utils.print_prompt_completions_sample": "prompts completions rewards advantages step num_samples=None "
    "extra=None",
    "trl.trainer.utils.start_event_loop_in_daemon": "name=None",
    "trl.trainer.utils.shutdown_event_loop_in_daemon": "thread loop",
    "trl.trainer.utils.use_adapter": "model adapter_name",
}
# What a method does that we count on: fragments of its source, in this order, and what hangs on them
FACTS = {
    "_inner_training_loop": [
        (
            "an epoch that asks for the end of training is the last one",
            ["self._run_epoch(", "if self.control.should_training_stop:", "break"],
        ),
        (
            "the loss that is not logged yet is kept in two attributes, which are set before the first epoch",
            [
                "self._tr_loss = torch.tensor(0.0",
                "self._total_loss_scalar = 0.0",
                "self._globalstep_last_logged = self.state.global_step",
                "self.callback_handler.on_train_begin(",
                "self._run_epoch(",
            ],
        ),
    ],
    "_run_epoch": [
        (
            "random numbers are loaded before anything is computed, and the sampler draws its order after training began",
            ["iter(train_dataloader)", "self._load_rng_state(resume_from_checkpoint)", "self.training_step("],
        ),
    ],
    "_prepare_inputs": [
        (
            "rollouts are made when the count of micro-batches says so, and else taken from the buffer",
            [
                "generate_every = self.args.steps_per_generation * self.num_iterations",
                "if self._step % generate_every == 0 or self._buffered_inputs is None:",
                "self._buffered_inputs = [",
                "self._buffered_inputs[self._step % self.args.steps_per_generation]",
            ],
        ),
    ],
    "training_step": [("micro-batches are counted over all epochs", ["self._step += 1"])],
    "_compute_loss": [
        (
            "the log-probs are computed inside the loss, where our stand-in for the method sees them, and only then are "
            "the old ones read (turn-level ratio)",
            ["self._get_per_token_logps_and_entropies(", 'inputs.get("old_per_token_logps")'],
        ),
        (
            "off-policy masks sum up the sampling log-probs where there are such, and nothing else reads them",
            [
                "if self.off_policy_mask_threshold is not None:",
                'inputs.get("sampling_per_token_logps", old_per_token_logps)',
            ],
        ),
        (
            "a loss over the tokens of a generation batch is scaled for accumulation and for the mean over processes as the "
            "critic's is over its turns",
            [
                'inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes',
                "normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation",
            ],
        ),
        ("advantages may be (B, T)", ['inputs["advantages"]', "if advantages.dim() == 1:", "advantages.unsqueeze(1)"]),
        (
            "the ratio is old from new log-probs, and at the token level taken as it is",
            [
                "log_ratio = per_token_logps - old_per_token_logps",
                'self.importance_sampling_level == "token"',
                "log_importance_weights = log_ratio",
            ],
        ),
        (
            "the clip range is read from the two attributes that we replace by tensors",
            ["torch.clamp(coef_1, 1 - self.epsilon_low, 1 + self.epsilon_high)"],
        ),
        ("CISPO clips by epsilon_high alone", ["torch.clamp(coef_1, max=self.epsilon_high)"]),
        (
            "clip metrics compare with the same bounds, element by element",
            ["coef_1 < 1 - self.epsilon_low", "coef_1 > 1 + self.epsilon_high"],
        ),
        ("observations are masked", ['completion_mask * inputs["tool_mask"]']),
    ],
    "_generate_and_score_completions": [
        (
            "tools of each rollout are set up before generation",
            ["self._batch_environments", "self._sync_tool_dicts", "self._async_tool_dicts", "self._generate(prompts)"],
        ),
        (
            "environments are reset before generation, where we read the answers that they set, into rows that rewards get",
            [
                "self.environments = []",
                "environment.reset(",
                "self._generate(prompts)",
                "self._calculate_rewards(inputs,",
            ],
        ),
        ("each rollout starts from the tools without environment", ["self._standalone_tools + methods"]),
        ("tool_mask is padded with 1", ["tool_mask_list", "padding_value=1"]),
        (
            "old log-probs are computed when an update can be off-policy or vLLM is corrected, before the reference's (our "
            "start-up warning and the beliefs that share them use the same condition)",
            [
                "generate_every = self.args.steps_per_generation * self.num_iterations",
                "self.args.gradient_accumulation_steps % generate_every != 0",
                "self.use_vllm and self.vllm_importance_sampling_correction",
                "old_per_token_logps, _, _ = self._get_per_token_logps_and_entropies(",
                "self.model,\n                    prompt_completion_ids,\n                    attention_mask,\n                    logits_to_keep,",
                "ref_per_token_logps, _, _ = self._get_per_token_logps_and_entropies(",
                "self.ref_model,",
                'use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)',
                "self.model,",
            ],
        ),
        (
            "the reference is its own model, or the policy without its adapters or with their frozen copy (what belief_model asks)",
            [
                "if self.beta != 0.0:",
                "if self.ref_model is not None:",
                'with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):',
            ],
        ),
        (
            "advantages are the local part of all processes'",
            ["process_slice", "advantages = advantages[process_slice]"],
        ),
        ("rewards are computed by the method that we override", ["self._calculate_rewards("]),
        (
            "whether there are pictures of tools is all that is read of tool_images, which we answer with all pictures, and then "
            "placeholders are found in the tokens",
            [
                "images,\n            tool_images,\n        ) = self._generate(prompts)",
                "if self.tools and any(imgs for imgs in tool_images) and self._is_vlm:",
                "self.processing_class.image_processor(images=flat_images",
                "if self.tools and any(imgs for imgs in tool_images) and self._is_vlm:",
                "mm_ids[prompt_completion_ids == self._image_pad_token_id] = 1",
            ],
        ),
        (
            "a batch has no pictures where all rows have an empty list (rows_with_pictures)",
            ['if "images" in inputs[0]:', "all(img_list == [] for img_list in images)"],
        ),
        ("the logged advantages are those of all processes", ['self._logs["advantages"].extend(']),
        (
            "the batch has the keys that we read",
            ['"completion_mask"', '"advantages"', 'output["old_per_token_logps"]', 'output["tool_mask"]'],
        ),
    ],
    "_calculate_rewards": [
        (
            "reward functions are read from the attribute that we replace, and called with keywords",
            [
                "self.reward_funcs, self.reward_processing_classes",
                "reward_func(**reward_inputs).logits[:, 0]",
                "is_async_callable(reward_func)",
                "prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs",
            ],
        ),
        (
            "rewards are (B, functions), those of all processes",
            [
                "torch.zeros(len(prompts), len(self.reward_funcs)",
                "gather(rewards_per_func)",
                "return rewards_per_func",
            ],
        ),
    ],
    "_generate": [
        (
            "prompts are tokenised and the first turn is generated by the methods that we override",
            ["self._tokenize_prompts(prompts)", "self._generate_single_turn("],
        ),
        ("the tool mask comes third", ["return prompt_ids, completion_ids, tool_mask,"]),
        ("the loop runs if there are tools", ["if self.tools:", "self._tool_call_loop("]),
        ("without tools env_mask is the tool_mask", ["else:", 'tool_mask = extra_fields.pop("env_mask", None)']),
    ],
    "_tokenize_prompts": [
        ("schemas come from the two attributes that the tags protocol hides", ["self._env_tools[name] or None"]),
        ("schemas come from the two attributes that the tags protocol hides", ["self.tools or None"]),
    ],
    "_generate_single_turn": [
        (
            "vLLM has its own path: new weights are loaded before a generation, the best log-prob of each token is read",
            ["if self.use_vllm:", ".sync_weights()", "self.vllm_generation.generate(", "[lp[0] for lp in seq]"],
        ),
        (
            "with ZeRO-3 weights are gathered, unless they are already",
            ["gather_deepspeed3_params=self.args.ds3_gather_for_generation"],
        ),
        (
            "stop strings reach generate by both of its configurations",
            ["generation_kwargs=self.generation_kwargs", "generation_config=self.generation_config"],
        ),
        ("what follows the end of the sequence is cut, other padding is not", ["self.eos_token_ids", "argmax(dim=1)"]),
    ],
    "_tool_call_loop": [
        (
            "an observation is dropped if it exceeds the budget or fills the context",
            ["> self.max_completion_length or", ">= max_model_len"],
        ),
        (
            "the context of a colocated vLLM is its own",
            ["self.vllm_generation.llm.llm_engine.model_config.max_model_len"],
        ),
        (
            "it returns what our loop returns, in this order",
            [
                "return tool_mask, completions, completion_ids, logprobs, tool_call_count, tool_failure_count, tool_images"
            ],
        ),
    ],
    "_get_per_token_logps_and_entropies": [
        (
            "all that it does with the model is to call it, micro-batch by micro-batch, and the fused head gives log-probs",
            [
                "for start in range(0, input_ids.size(0), batch_size)",
                "outputs = model(**model_inputs, labels=labels, fused_lm_head=True)",
                ".log_probs",
            ],
        ),
        ("it returns three things", ["return logps, entropies, aux_loss"]),
    ],
    "__init__": [
        ("standalone tools are those without environment", ["self._standalone_tools = tools"]),
        (
            "chat templates without tools are refused where there are tools",
            ["supports_tool_calling(processing_class)"],
        ),
        ("the parser is set up where there are tools", ["if self.tools:", "add_response_schema(processing_class)"]),
        ("vLLM gets the sampling parameters of the config", ["generation_kwargs=args.generation_kwargs"]),
    ],
    "log": [
        (
            "what is printed and the completions table are made from the logs that we replace by text",
            ["print_prompt_completions_sample(", 'self._logs["completion"]', 'self._logs["prompt"]'],
        ),
        (
            "the completions table shows our columns",
            ['**self._logs["extra"]', '"advantage": self._logs["advantages"]'],
        ),
    ],
}
# Attributes of `GRPOTrainer` that exist only in a batch, with environments, or with vLLM: where TRL sets them
SET_LATER = {
    "_batch_environments": "_generate_and_score_completions",
    "_sync_tool_dicts": "_generate_and_score_completions",
    "_async_tool_dicts": "_generate_and_score_completions",
    "_env_tools": "__init__",
    "vllm_generation": "__init__",
}


def written(function):
    """The parameters of a function, as in the tables above."""
    return " ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default}".replace(" ", "")
        for name, parameter in inspect.signature(function).parameters.items()
    )


def seams_used():
    """Attributes of TRL's trainer that ours uses, from its source."""
    (trainer,) = (
        node
        for node in ast.parse(Path(a2tgpo_trl.trainer.__file__).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "A2TGPOTrainer"
    )
    read, stored = set(), set()
    for node in ast.walk(trainer):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            (stored if isinstance(node.ctx, ast.Store) else read).add(node.attr)
    inherited = read - stored - vars(A2TGPOTrainer).keys()
    return sorted(inherited | {"tools", "_standalone_tools", "reward_func_names"})  # three that it writes


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    """TRL's own trainer, as it stands after its constructor."""
    options = dict(num_generations=4, per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[])
    return GRPOTrainer(
        model=tiny.model(),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(str(tmp_path_factory.mktemp("trl")), **options),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "?"}]}] * 4),
        processing_class=tiny.chat_tokenizer(),
        tools=[search],
    )


@pytest.mark.parametrize("method", [*OVERRIDDEN, *CALLED])
def test_signature_in_trl(method):
    assert hasattr(GRPOTrainer, method), f"TRL seam GRPOTrainer.{method} is gone"
    expected = {**OVERRIDDEN, **CALLED}[method]
    assert written(getattr(GRPOTrainer, method)) == expected, f"TRL seam GRPOTrainer.{method} takes other arguments"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_of_trl(function):
    module, _, name = function.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    assert found is not None, f"TRL seam {function} is gone"
    assert written(found) == FUNCTIONS[function], f"TRL seam {function} takes other arguments"


@pytest.mark.parametrize(
    ("method", "fact", "fragments"), [(method, *fact) for method, facts in FACTS.items() for fact in facts]
)
def test_source_of_trl(method, fact, fragments):
    source = inspect.getsource(getattr(GRPOTrainer, method))
    position = 0
    for fragment in fragments:
        found = source.find(fragment, position)
        assert found >= 0, f"TRL seam GRPOTrainer.{method} moved: {fact}. Not found, or not in this place: {fragment}"
        position = found + len(fragment)


def test_generation_of_a_colocated_vllm():
    """Rollouts join the engine in the place of `llm.generate`: with its parameters, after it wakes up, before it sleeps."""
    fragments = [
        'elif self.mode == "colocate":',
        '"max_tokens": max_completion_length',
        "generation_kwargs.update(self.generation_kwargs)",
        "SamplingParams(**generation_kwargs)",
        "self.llm.wake_up(",
        "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)",
        "self.llm.sleep(",
    ]
    source = inspect.getsource(VLLMGeneration.generate)
    places = [source.rfind(fragment) for fragment in fragments]
    assert min(places) >= 0 and places == sorted(places), "TRL seam VLLMGeneration.generate moved"


def test_what_we_override_is_pinned():
    ours = {name for name, value in vars(A2TGPOTrainer).items() if callable(value) and hasattr(GRPOTrainer, name)}
    assert ours == OVERRIDDEN.keys()
    listed = A2TGPOTrainer.__doc__.partition("What it overrides of TRL's")[2]
    assert ours - {"__init__"} == set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"- (`.*?):", listed))))


@pytest.mark.parametrize("method", OVERRIDDEN)
def test_override_accepts_what_trl_passes(method):
    ours = inspect.signature(getattr(A2TGPOTrainer, method)).parameters
    theirs = inspect.signature(getattr(GRPOTrainer, method)).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values()):
        assert any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())
        return
    assert [name for name in ours if name != "turn_reward_funcs"] == list(theirs)
    assert [p.default for name, p in ours.items() if name in theirs] == [p.default for p in theirs.values()]


@pytest.mark.parametrize("attribute", seams_used())
def test_attribute_of_trl(trl_trainer, attribute):
    if attribute in SET_LATER:
        source = inspect.getsource(getattr(GRPOTrainer, SET_LATER[attribute]))
        there = f"self.{attribute} = " in source
    else:
        there = hasattr(trl_trainer, attribute)
    assert there, f"TRL seam GRPOTrainer.{attribute}, which A2TGPOTrainer reads, is gone"


@pytest.mark.parametrize(
    "attribute", ["_step", "_buffered_inputs", "_metrics", "_logs", "log_completions", "num_iterations"]
)
def test_attribute_of_trl_that_is_saved(trl_trainer, attribute):
    assert hasattr(trl_trainer, attribute), f"TRL seam GRPOTrainer.{attribute}, which RunState saves, is gone"


def test_logs_of_trl(trl_trainer):
    trl_trainer._metrics["train"]["new/metric"].append(1.0)
    trl_trainer._logs["extra"]["new column"].extend([1])
    assert hasattr(trl_trainer._logs["advantages"], "pop"), (
        "TRL seam GRPOTrainer._logs['advantages'] cannot be corrected"
    )


def test_clip_range_of_trl_is_a_number(trl_trainer):
    assert (trl_trainer.epsilon_low, trl_trainer.epsilon_high) == (0.2, 0.2)


def test_config_adds_fields_and_drops_none():
    ours, theirs = ({field.name: field for field in fields(cls)} for cls in (A2TGPOConfig, GRPOConfig))
    assert theirs.keys() <= ours.keys()
    assert list(ours)[: len(theirs)] == list(theirs), "positional arguments of the config keep TRL's order"
    changed = {name for name in theirs if ours[name].default != theirs[name].default}
    assert changed == {"importance_sampling_level", "epsilon", "loss_type"}
    assert all(ours[name].default_factory == theirs[name].default_factory for name in theirs)
    assert ours.keys() - theirs.keys() == {
        "advantage_estimator",
        "turn_advantage_coef",
        "turn_advantage_schedule",
        "turn_gamma",
        "turn_clip_strength",
        "turn_normalization",
        "turn_credit_groups",
        "gain_noise_floor",
        "turn_comparison",
        "turn_aggregation",
        "turn_baseline",
        "turn_scale",
        "turn_outcome",
        "turn_reward_weights",
        "gae_lambda",
        "whiten_advantages",
        "critic_layers",
        "critic_learning_rate",
        "vf_coef",
        "cliprange_value",
        "turn_records",
        "turn_records_max_mb",
        "turn_records_picture_px",
        "turn_rescale",
        "turn_table_steps",
        "tree_chains",
        "tree_expansions",
        "tree_choice",
        "tree_sibling_penalty",
        "tree_shared_turns",
        "belief_measure",
        "belief_model",
        "answer_aliases",
        "gain_from",
        "answer_column",
        "answer_stop",
        "answer_template",
        "ig_tokens_per_batch",
        "tool_protocol",
        "tool_loop",
        "tool_tags",
        "result_tag",
        "tool_concurrency",
        "tool_timeout",
        "max_abandoned_calls",
        "max_turn_tokens",
        "max_observation_tokens",
        "reuse_history",
        "lockstep",
        "skip_empty_updates",
    }
    for name in ours.keys() - theirs.keys():
        assert ours[name].metadata.get("help"), f"{name} has no help"
        assert ours[name].default is not MISSING
