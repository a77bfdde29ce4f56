"""Turns on the transformers backend: the same as TRL's loop writes, each token read once, on one process or several."""

import copy
import threading
from functools import partial
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

import chance
import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.rollout.generation.backends import TransformersBackend, VLLMBackend
from chance import ENDS, PROMPTS, look, rolled_out, rows


@pytest.fixture
def trainers(config, monkeypatch):
    """`trainers(cls, **options)`: a trainer of a random model that calls tools by chance, and decides greedily."""
    chance.install_parser(monkeypatch)

    def make(
        cls=A2TGPOTrainer,
        architecture="llama",
        pad="<|endoftext|>",
        tools=(look,),
        model=None,
        peft_config=None,
        reward=lambda completions, **kwargs: [0.0] * len(completions),
        dataset=None,
        environment_factory=None,
        **options,
    ):
        tokenizer = tiny.chat_tokenizer()
        tokenizer.pad_token = pad
        model = (model or tiny.model(architecture)).eval()
        model.generation_config.eos_token_id = ENDS
        if cls is A2TGPOTrainer:
            options.setdefault("advantage_estimator", "grpo")
        options = {"max_completion_length": 160, "max_tool_calling_iterations": 4, "num_generations": 2, **options}
        options["generation_kwargs"] = {"do_sample": False, **options.get("generation_kwargs", {})}
        return cls(
            model=model,
            reward_funcs=reward,
            args=config(A2TGPOConfig if cls is A2TGPOTrainer else GRPOConfig, **options),
            train_dataset=Dataset.from_list(dataset or rows()),
            processing_class=tokenizer,
            tools=list(tools),
            peft_config=peft_config,
            environment_factory=environment_factory,
        )

    return make


@pytest.mark.parametrize(
    ("architecture", "pad"),
    [("llama", "<|endoftext|>"), ("llama", "<|im_end|>"), ("qwen3", "<|endoftext|>"), ("gpt2", "<|im_end|>")],
)
def test_same_rollouts_as_trl(trainers, architecture, pad):
    theirs = rolled_out(trainers(GRPOTrainer, architecture, pad))
    turns = [sum(a < b for a, b in pairwise([0, *mask])) for mask in theirs[2]]
    assert len(set(turns)) > 2  # rollouts of very different length
    for reuse_history, lockstep in ((True, False), (True, True), (False, True)):
        trainer = trainers(A2TGPOTrainer, architecture, pad, reuse_history=reuse_history, lockstep=lockstep)
        ours = rolled_out(trainer)
        for ours_value, value in zip(ours[:4], theirs[:4], strict=True):  # prompts, completions, masks, messages
            assert ours_value == value
        assert (trainer._player.turns._history is not None) is reuse_history


@pytest.mark.parametrize("reuse_history", [True, False])
def test_tokens_fed_are_counted(trainers, reuse_history):
    trainer = trainers(reuse_history=reuse_history)
    fed, forward = [], trainer.model.forward

    def count(*args, input_ids=None, attention_mask=None, **kwargs):
        fed.append(input_ids.numel())
        return forward(*args, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    trainer.model.forward = count
    prompt_ids, completion_ids, *_ = rolled_out(trainer)
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    final = sum(map(len, prompt_ids)) + sum(map(len, completion_ids))
    ratio = metrics["rollout/tokens_fed_ratio"][0]
    assert metrics["rollout/tokens_fed"][0] == pytest.approx(ratio * final / len(prompt_ids))
    assert ratio * final <= sum(fed)  # those were padded
    if reuse_history:
        # Each prompt stands twice in the batch and is read once, but for its last token; last tokens of all may be unread
        once = final - sum(len(ids) - 1 for ids in prompt_ids[::2])
        assert once - len(prompt_ids) - 1 < ratio * final < once + 1
    else:
        assert ratio > 1.5


def write(trainer, rows, contexts, *args):
    generate = super(A2TGPOTrainer, trainer)._generate_single_turn
    return trainer._player.turns.write(generate, rows, contexts, [[]] * len(contexts), *args)


def test_each_turn_ends_at_its_own_limit(trainers):
    trainer = trainers(reuse_history=True, generation_kwargs={"eos_token_id": None})
    contexts = trainer._tokenizer(PROMPTS[:3])["input_ids"]
    turns, _ = write(trainer, [0, 1, 2], contexts, [5, 9, 1], 3)
    assert len(turns[0]) == 5 and len(turns[1]) <= 9 and len(turns[2]) == 1
    assert len({len(history.ids) for history in trainer._player.turns._history._histories.values()}) == 3
    assert trainer._player.turns.tokens_fed <= sum(map(len, contexts)) + 5 + 9 + 1


def test_history_is_given_back_after_the_batch(trainers):
    trainer = trainers()
    rolled_out(trainer)
    assert not trainer._player.turns._history._histories
    assert trainer._player.turns.tokens_fed == 0
    assert "generate" not in vars(trainer.model)


def test_history_of_finished_rollouts_is_given_back_while_others_go_on(trainers, monkeypatch):
    trainer = trainers(lockstep=True)
    history = trainer._player.turns._history
    held, generate = [], history.generate

    def watch(write, rows, *args, **kwargs):
        held.append((set(history._histories), set(rows)))
        return generate(write, rows, *args, **kwargs)

    monkeypatch.setattr(history, "generate", watch)
    rolled_out(trainer)
    assert len(held[0][1]) > len(held[-1][1]) > 0  # some rollouts are over before others
    assert all(kept == playing for kept, playing in held[1:])


def test_history_is_given_back_where_no_tool_loop_follows(trainers, monkeypatch):
    trainer = trainers()

    def fail(*args):
        raise RuntimeError("no loop")

    monkeypatch.setattr(trainer, "_tool_call_loop", fail)
    with pytest.raises(RuntimeError, match="no loop"):
        rolled_out(trainer)
    assert not trainer._player.turns._history._histories


def test_what_is_logged_belongs_to_the_mode_before_generation(trainers, monkeypatch):
    trainer = trainers()
    write = trainer._player.turns.write

    def write_and_train(*args):
        trainer.model.train()  # as TRL does after continuous batching
        return write(*args)

    monkeypatch.setattr(trainer._player.turns, "write", write_and_train)
    trainer.model.eval()
    rolled_out(trainer)
    assert "rollout/stop/answered" in trainer._metrics["eval"]
    assert "rollout/stop/answered" not in trainer._metrics["train"]


def test_the_first_turn_ends_with_the_context_of_the_model(trainers):
    prompts, *_ = trainers()._tokenize_prompts([row["prompt"] for row in rows()])
    context = max(map(len, prompts)) + 1
    trainer = trainers(model=tiny.model(max_position_embeddings=context))
    turns, _ = trainer._generate_single_turn(prompts, None, {}, 2)
    assert all(len(prompt) + len(turn) <= context for prompt, turn in zip(prompts, turns, strict=True))
    assert min(map(len, turns)) == 1 < max(map(len, turns))


def test_same_rollouts_as_trl_with_a_generate_of_ones_own(trainers):
    def generate(input_ids, **kwargs):
        written = (input_ids[:, -1:] + torch.arange(1, 9)) % 300 + 6
        return torch.cat([input_ids, written], dim=1)

    played = []
    for cls in (GRPOTrainer, A2TGPOTrainer):
        trainer = trainers(cls)
        trainer.model.generate = generate
        played.append(rolled_out(trainer))
    assert max(map(sum, played[0][2])) > 8  # more than one turn
    assert played[0][:4] == played[1][:4]


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"lora": True}, {"pad_to_multiple_of": 8}])
def test_same_rollouts_as_trl_with(trainers, options):
    lora = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False) if options.pop("lora", False) else None
    played = []
    for cls in (GRPOTrainer, A2TGPOTrainer):
        torch.manual_seed(0)
        trainer = trainers(cls, peft_config=lora, **options)
        trainer.model.eval()
        played.append(rolled_out(trainer))
    assert trainer._player.turns._history is not None
    assert played[0][:4] == played[1][:4]


def test_chat_turns_end_at_the_stop_strings_of_the_user(trainers):
    trainer = trainers(generation_kwargs={"stop_strings": ["France"]})
    pad, turn = trainer._tokenizer.pad_token_id, trainer._tokenizer("Lyon is in France")["input_ids"]
    kept, _ = trainer._player.turns.write(lambda *_: ([[*turn, pad, pad]], None), [0], [[7]], [[]], [50], 1)
    assert kept == [turn]
    assert trainer._player.protocol.is_complete(turn)


def test_a_limit_of_observations_has_to_leave_room_for_their_markup(trainers):
    with pytest.raises(ValueError, match=r"max_observation_tokens=8 has no room .* take \d+ tokens"):
        trainers(max_observation_tokens=8)


def test_sliding_windows_read_the_history_again(trainers, caplog):
    model = tiny.model("gemma2", attn_implementation="eager")
    trainer = trainers(model=model, max_completion_length=60)
    assert trainer._player.turns._history is None
    assert "reads its whole history again: gemma2 has sliding_attention layers" in caplog.text
    theirs = trainers(GRPOTrainer, model=copy.deepcopy(model), max_completion_length=60)
    assert rolled_out(trainer)[1] == rolled_out(theirs)[1]


def test_turns_are_limited(trainers):
    trainer = trainers(max_turn_tokens=3)
    _, _, masks, *_ = rolled_out(trainer)
    assert max(len(run) for mask in masks for run in "".join(map(str, mask)).split("0")) == 3
    assert trainer.generation_config.max_new_tokens == 160  # as it was


def test_observations_are_cut(trainers):
    def long(key: int) -> str:
        """
        Look something up, at length.

        Args:
            key: Where to look.
        """
        return look(key) * 5

    long.__name__ = "look"
    longest = {}
    for limit in (None, 120):
        trainer = trainers(tools=(long,), max_observation_tokens=limit, max_completion_length=600)
        _, _, masks, messages, *_ = rolled_out(trainer)
        longest[limit] = max(len(run) for mask in masks for run in "".join(map(str, mask)).split("1"))
        assert ("characters left out]" in str(messages)) is (limit is not None)
    assert longest[120] <= 120 < longest[None]


# ---- TRL's own loop ------------------------------------------------------------------------------------------------


def length(completions, **kwargs):
    return [float(len(str(messages))) for messages in completions]


def test_trls_loop_trains_to_trls_weights_bit_for_bit(trainers, monkeypatch):
    """Sampled, with a budget that cuts turns: the random state that generation leaves behind shuffles what follows."""
    shuffled = dict(
        max_steps=6, steps_per_generation=4, max_completion_length=90, generation_kwargs={"do_sample": True}
    )
    trained = []
    for cls, options in ((GRPOTrainer, {}), (A2TGPOTrainer, {"tool_loop": "trl"})):
        trainer = trainers(cls, reward=length, temperature=1.1, num_iterations=2, **shuffled, **options)
        start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        torch.manual_seed(0)
        trainer.train()
        trained.append(trainer)
    theirs, ours = (dict(trainer.model.named_parameters()) for trainer in trained)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert not any(torch.equal(start[name], ours[name]) for name in ours)
    log, our_log = (trainer.state.log_history[0] for trainer in trained)
    assert log["tools/call_frequency"] > 0.5 and log["completions/clipped_ratio"] > 0
    ours_alone = our_log.keys() - log.keys()
    assert all(name.startswith(("updates/", "rollout/", "turns/", "advantages/")) for name in ours_alone)


def test_trls_loop_runs_tools_as_trl_does_and_its_turns_get_credit(trainers):
    threads = []

    def look(key: int) -> str:
        """
        Look something up.

        Args:
            key: Where to look.
        """
        threads.append(threading.current_thread())
        return "Lyon is in France."

    for loop, on_main_thread in (("trl", True), ("a2tgpo", False)):
        trainer = trainers(tools=(look,), advantage_estimator="a2tgpo", tool_loop=loop)
        batch = trainer._generate_and_score_completions(rows())
        assert {thread is threading.main_thread() for thread in threads} == {on_main_thread}
        gains = ~batch["information_gain"].isnan()
        assert gains.any() and torch.equal(gains.sum(1).bool(), (batch["turn_ids"].amax(1) > 0))
        threads.clear()


def test_trls_loop_with_environments(trainers):
    class Library:
        def reset(self, **kwargs):
            self.count = 0

        def look(self, key: int) -> str:
            """
            Look something up.

            Args:
                key: Where to look.
            """
            self.count += 1
            return f"question {self.count}"

    played = [
        rolled_out(trainers(cls, tools=(), environment_factory=Library, **options))
        for cls, options in ((GRPOTrainer, {}), (A2TGPOTrainer, {"tool_loop": "trl"}))
    ]
    assert played[0][:4] == played[1][:4]
    assert "question 2" in str(played[0][3])


def test_trls_loop_knows_no_tags(trainers):
    with pytest.raises(ValueError, match="knows the chat template's calls only, and tool_protocol is 'tags'"):
        trainers(tool_loop="trl", tool_protocol="tags")
    plain = [{"prompt": "Where is Lyon?", "answer": "Paris"}] * 4
    with pytest.raises(ValueError, match="these prompts or this chat template leave nothing but tags"):
        trainers(tool_loop="trl", dataset=plain)


@pytest.mark.parametrize(
    "option", [{"tool_timeout": 3.0}, {"lockstep": True}, {"max_turn_tokens": 9}, {"result_tag": "found"}]
)
def test_options_that_trls_loop_does_not_read_are_refused(config, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.* has no effect with tool_loop='trl'"):
        config(tool_loop="trl", **option)


# ---- generation that is collective ---------------------------------------------------------------------------------


@pytest.fixture
def collective(trainers, monkeypatch):
    """A trainer that takes itself for one of several processes under FSDP."""
    monkeypatch.setattr(TransformersBackend, "collective", "FSDP")
    return trainers


def test_collective_generation_is_in_lockstep_and_says_so(collective, caplog):
    trainer = collective()
    assert "lockstep: FSDP needs the same generations on all processes" in caplog.text
    assert trainer._player.turns._history.share_prompts is False
    seen = []
    agree = trainer._player.turns.agree
    trainer._player.turns.agree = lambda number: seen.append(number) or agree(number)
    rolled_out(trainer)
    assert seen[-1] == 0  # all ask once more, so that nobody stops before the others


def test_a_process_without_rollouts_joins_with_a_row_that_ends_at_once(collective):
    trainer = collective()
    lengths = []
    forward = trainer.model.forward

    def count(*args, input_ids=None, **kwargs):
        lengths.append(input_ids.size())
        return forward(*args, input_ids=input_ids, **kwargs)

    trainer.model.forward = count
    ids, logprobs = write(trainer, [], [], [], 3)
    assert (ids, logprobs) == ([], None)
    assert lengths == [torch.Size([1, 1])]  # one row, one token: it does not hold up the others
    assert trainer._player.turns._history.tokens_fed == 1
    assert not trainer._player.turns._history._histories


@pytest.fixture
def vllm_trainers(trainers, monkeypatch):
    """Trainers with TRL's own `VLLMGeneration`, which starts no engine and calls no server."""
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: None)
    return partial(trainers, use_vllm=True, vllm_importance_sampling_correction=False, generation_kwargs={})


def test_a_vllm_server_gets_as_many_rows_from_each_process(vllm_trainers, monkeypatch):
    monkeypatch.setattr(VLLMBackend, "collective", "a vLLM server")
    trainer = vllm_trainers(vllm_mode="server")
    asked = []

    def generate(contexts, images, fields, num_generations):
        asked.append((contexts, trainer.vllm_generation.max_completion_length))
        return [[7, 2] for _ in contexts], [[-0.1, -0.2] for _ in contexts]

    ids, logprobs = trainer._player.turns.write(generate, [4], [[9, 9]], [[]], [20], 3)
    assert asked == [([[9, 9], [2], [2]], 160)]  # the main process limits all, and knows only its own rows
    assert (ids, logprobs) == ([[7, 2]], [[-0.1, -0.2]])
    assert trainer.vllm_generation.max_completion_length == 160


@pytest.mark.parametrize(
    ("processes", "settings", "fsdp", "backend"),
    [
        (1, {"vllm_mode": "server"}, False, None),
        (2, {"vllm_mode": "server"}, False, "a vLLM server"),
        (2, {}, False, None),
        (2, {"vllm_tensor_parallel_size": 2}, False, "vLLM with tensor parallelism"),
        (2, {"vllm_enable_sleep_mode": True}, False, None),
        (2, {"vllm_enable_sleep_mode": True}, True, "vLLM's sleep mode with FSDP"),
        (2, {}, True, None),
        (2, {"use_vllm": False}, False, None),
        (2, {"use_vllm": False}, True, "FSDP"),
        (2, {"use_vllm": False, "use_transformers_continuous_batching": True}, True, "FSDP"),
    ],
)
def test_collective_backends(vllm_trainers, monkeypatch, processes, settings, fsdp, backend):
    trainer = vllm_trainers(**settings)
    trainer.is_fsdp_enabled = fsdp
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    assert trainer.backend.collective == backend


# ---- rollouts that join a running engine ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"vllm_enable_sleep_mode": True}, None),
        ({"generation_kwargs": {"seed": 1, "min_tokens": 2}}, None),
        ({"vllm_mode": "server"}, "with vllm_mode='server' the engine runs in another process"),
        ({"vllm_structured_outputs_regex": "a+"}, "vllm_structured_outputs_regex is set"),
        (
            {"generation_kwargs": {"structured_outputs": {"regex": "a+"}}},
            "generation_kwargs sets 'structured_outputs'",
        ),
        ({"generation_kwargs": {"n": 2}}, "generation_kwargs sets 'n'"),
        ({"generation_kwargs": {"max_tokens": 2000}}, "generation_kwargs sets 'max_tokens'"),
    ],
)
def test_who_joins_and_why_not(vllm_trainers, caplog, settings, reason):
    trainer = vllm_trainers(**settings)
    assert trainer._player.turns.joins is (reason is None)
    said = f"Rollouts do not join a running batch of vLLM, but wait for its end: {reason}."
    assert [record.message for record in caplog.records if "join" in record.message] == [said] * (reason is not None)


@pytest.mark.parametrize("settings", [{"lockstep": True}, {"use_vllm": False}])
def test_nobody_is_told_that_batches_are_batches(vllm_trainers, caplog, settings):
    assert not vllm_trainers(**settings)._player.turns.joins
    assert "join" not in caplog.text


def test_several_processes_join_their_own_engines_where_generation_is_not_collective(vllm_trainers, monkeypatch):
    monkeypatch.setattr(VLLMBackend, "collective", None)
    assert vllm_trainers()._player.turns.joins
    monkeypatch.setattr(VLLMBackend, "collective", "vLLM with tensor parallelism")
    assert not vllm_trainers()._player.turns.joins
