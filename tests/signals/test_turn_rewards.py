"""Turn rewards: from functions, coroutine functions, models and tools to advantages, metrics and records."""

import asyncio
import functools
import math
from itertools import accumulate

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

import tiny
from a2tgpo_trl import A2TGPOTrainer, ToolReward
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.rewards import format_penalty, tool_reward
from a2tgpo_trl.rollout import Turn
from a2tgpo_trl.signals.process_reward_model import ProcessRewardModel
from conftest import CHAT_ROWS, GROUP, QUESTION, chat_correct, chat_rollouts, correct

NAN = math.nan


def by_index(turns, **columns):
    """0.5, 1.0, 1.5, … and nothing for answers."""
    return [[None if "<answer>" in turn.text else (k + 1) / 2 for k, turn in enumerate(own)] for own in turns]


async def slow_ones(turns, answer, prompts, completions, **columns):
    assert len(answer) == len(prompts) == len(completions) == len(turns) and prompts[0] == QUESTION
    await asyncio.sleep(0.01)
    return [[1.0] * len(own) for own in turns]


def turns_of(trainer):
    return [
        turn
        for rollout in trainer.play([{"prompt": QUESTION, "answer": "Paris"}], num_generations=4)
        for turn in rollout.turns
    ]


def test_functions_reach_advantages_metrics_and_records(build, rows):
    trainer = build(
        advantage_estimator="mt_grpo",
        turn_reward_funcs=[by_index, slow_ones],
        turn_reward_weights=[2.0, 0.5],
        per_device_eval_batch_size=4,
    )
    trainer.train()
    records = read_turns(trainer.args.output_dir).to_pylist()
    first_batch = [row for row in records if row["step"] == 0]
    assert [row["turn_reward"] for row in first_batch] == [0.5, 1.5, 0.5, 1.5, 2.5, 3.5, 0.5, 1.5, 2.5, 0.5]
    assert dict(first_batch[1]["turn_rewards"]) == {"by_index": 0.5, "slow_ones": 1.0}
    assert dict(first_batch[0]["turn_rewards"]) == {"by_index": None, "slow_ones": 1.0}
    logged = trainer.state.log_history[0]
    assert logged["turn_rewards/by_index/mean"] == pytest.approx((3 * 0.5 + 2 * 1.0 + 1.5) / 6)
    assert logged["turn_rewards/by_index/turn_1"] == 1.0 and logged["turn_rewards/slow_ones/turn_3"] == 1.0
    assert "turn_rewards/by_index/turn_3" not in logged
    # MT-GRPO compares the first turns, (0.5, 1.5, 1.5, 1.5); the same number of each rollout's second one earns nothing
    advantage = {(row["generation"], row["turn"]): row["advantage"] - row["outcome_advantage"] for row in first_batch}
    first = torch.tensor([0.5, 1.5, 1.5, 1.5])
    expected = (first - first.mean()) / (first.std(unbiased=False) + 1e-6)
    assert [advantage[i, 0] for i in range(4)] == pytest.approx(expected.tolist(), abs=1e-4)
    played = turns_of(trainer)
    assert [turn.credit["turn_reward"] for turn in played] == [row["turn_reward"] for row in first_batch]
    assert played[0].rewards == {"by_index": None, "slow_ones": 1.0}


def test_no_answer_column_is_needed(build, rows):
    trainer = build(
        advantage_estimator="gtpo",
        turn_reward_funcs=format_penalty,
        dataset=[{"prompt": QUESTION}] * 8,
        reward=lambda completions, **_: [float("Paris" in text) for text in completions],
        trainer=lambda train_dataset, **arguments: A2TGPOTrainer(
            train_dataset=Dataset.from_list(train_dataset), **arguments
        ),
    )
    trainer.train()
    rows = [row for row in read_turns(trainer.args.output_dir).to_pylist() if row["step"] == 0]
    assert [row["turn_reward"] for row in rows if row["turn"] == 0] == pytest.approx([-0.1, 0, 0, 0])
    assert not any(name.startswith("information_gain") for name in trainer.state.log_history[0])


def test_masked_completions_are_compared_with_none(build):
    """The last one is cut, and its first turn is no member of the group of first turns."""

    def first_alone(turns, **columns):
        return [[float(i)] + [None] * (len(own) - 1) for i, own in enumerate(turns)]

    cut = [*GROUP[:3], ["<search>Lyon</search>", "<search>Lyon</search>", "<search>x</search>", "a", "no end"]]
    trainer = build(
        cut,
        advantage_estimator="mt_grpo",
        turn_reward_funcs=[first_alone],
        mask_truncated_completions=True,
        per_device_eval_batch_size=4,
    )
    rollouts = list(trainer.play([{"prompt": QUESTION, "answer": ["Paris"]}], num_generations=4))
    parts = [own.turns[0].credit for own in rollouts]
    first = torch.tensor([0.0, 1.0, 2.0])
    expected = (first - first.mean()) / (first.std(unbiased=False) + 1e-6)
    assert [part["advantage"] - part["outcome_advantage"] for part in parts[:3]] == pytest.approx(expected.tolist())
    assert parts[3]["turn_reward"] is None and rollouts[3].turns[0].rewards == {"first_alone": 3.0}


def test_processes_meet_once_for_all_functions(build, monkeypatch):
    trainer = build(
        advantage_estimator="mt_grpo", turn_reward_funcs=[by_index, by_index, by_index], per_device_eval_batch_size=4
    )
    gathered, gather = [], trainer.accelerator.pad_across_processes
    monkeypatch.setattr(
        trainer.accelerator,
        "pad_across_processes",
        lambda tensor, **options: gathered.append(tensor.shape) or gather(tensor, **options),
    )
    signal = trainer.signals["turn_rewards"]
    measure, shapes = signal.measure, []

    def measured(batch, ends):
        gathered.clear()
        table = measure(batch, ends)
        shapes.extend(gathered)
        return table

    monkeypatch.setattr(signal, "measure", measured)
    turns_of(trainer)
    assert shapes == [(4, 4, 3)]


def test_coroutine_functions_of_all_trainers_share_a_loop(build):
    loops = []

    async def noting(turns, **columns):
        loops.append(asyncio.get_running_loop())
        return [[1.0] * len(own) for own in turns]

    for _ in range(2):
        turns_of(build(advantage_estimator="mt_grpo", turn_reward_funcs=[noting], per_device_eval_batch_size=4))
    assert loops[0] is loops[1] and loops[0].is_running()


def test_coroutine_functions_run_in_the_loop_of_the_reward_functions(build):
    loops = []

    async def noting(turns, **columns):
        loops.append(asyncio.get_running_loop())
        return [[1.0] * len(own) for own in turns]

    async def rewarding(**columns):
        loops.append(asyncio.get_running_loop())
        return correct(**columns)

    trainer = build(
        advantage_estimator="mt_grpo", turn_reward_funcs=[noting], reward=rewarding, per_device_eval_batch_size=4
    )
    turns_of(trainer)
    assert loops == [trainer.async_loop] * 2


def test_tools_reward_the_turns_that_call_them(build):
    def search(query: str):
        """
        Look something up.

        Args:
            query: What to look for.
        """
        return ToolReward("Lyon is in France.", 0.25) if query == "Lyon" else "Nothing."

    trainer = build(
        advantage_estimator="mt_grpo", tools=[search], turn_reward_funcs=[tool_reward], per_device_eval_batch_size=4
    )
    turns = turns_of(trainer)
    assert [turn.credit["turn_reward"] for turn in turns] == [
        None,
        0.25,
        None,
        0.25,
        None,
        None,
        None,
        None,
        None,
        None,
    ]
    assert turns[1].observation == "Lyon is in France." and turns[1].results[0].reward == 0.25


def test_nan_and_infinity_are_no_rewards(build):
    def odd(turns, **columns):
        return [[NAN, math.inf, 1.0, None][: len(own)] for own in turns]

    trainer = build(advantage_estimator="mt_grpo", turn_reward_funcs=[odd], per_device_eval_batch_size=4)
    assert {turn.credit["turn_reward"] for turn in turns_of(trainer)} == {None, 1.0}
    trainer.train()
    assert all(weights.isfinite().all() for weights in trainer.model.state_dict().values())


def test_partials_have_the_name_of_their_function(build):
    trainer = build(
        advantage_estimator="returns",
        turn_reward_funcs=[functools.partial(format_penalty, penalty=-1.0), format_penalty],
        per_device_eval_batch_size=4,
    )
    assert turns_of(trainer)[0].rewards == {"format_penalty": -1.0, "format_penalty_2": -0.1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda turns, **_: 1.0, "'<lambda>' returned float: return a list for each of the 4 rollouts"),
        (lambda turns, **_: [[1.0]], "returned 1 lists: return a list for each of the 4 rollouts"),
        (lambda turns, **_: [[1.0]] * 4, "returned 1 rewards for rollout 1, which has 2 turns: return one for each"),
        (lambda turns, **_: [["x"] * len(own) for own in turns], "returned 'x' for a turn: return a number, or None"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(build, given, message):
    trainer = build(advantage_estimator="mt_grpo", turn_reward_funcs=[given], per_device_eval_batch_size=4)
    with pytest.raises(ValueError) as error:
        turns_of(trainer)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(advantage_estimator="mt_grpo"), ValueError, "'mt_grpo' compares turn rewards, and there are none: give"),
        (dict(turn_reward_funcs=[by_index]), ValueError, "no effect with advantage_estimator='a2tgpo', which reads no turn"),
        (dict(advantage_estimator="gtpo", turn_reward_funcs=[3]), TypeError, "must be functions, models or names of models, got int"),
        (
            dict(advantage_estimator="gtpo", turn_reward_funcs=[by_index], turn_reward_weights=[1.0, 2.0]),
            ValueError,
            "turn_reward_weights has 2 numbers, and there are 1 turn_reward_funcs",
        ),
    ],
)  # fmt: skip
def test_bad_options(build, options, error, message):
    with pytest.raises(error) as raised:
        build(**options)
    assert message in str(raised.value)


# ---- process reward models -----------------------------------------------------------------------------------------

SMALL = dict(
    vocab_size=400,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    pad_token_id=0,
    initializer_range=0.2,
)


def model(cls, config=LlamaConfig, **options):
    torch.manual_seed(0)
    return cls(config(**{**SMALL, **options})).eval()


def read(judge, *rollouts):
    """What a judge gives rollouts, each the texts of its turns."""
    tokenizer = tiny.tokenizer()
    turns = [
        [Turn(tokenizer(text)["input_ids"], {"role": "assistant", "content": text}) for text in texts]
        for texts in rollouts
    ]
    return judge(turns=turns, prompts=[QUESTION] * len(turns), decode=tokenizer.decode)


def text_before(turns, k):
    """The rollout up to the end of a turn, as such a model reads it."""
    pieces = [QUESTION]
    for turn in turns[: k + 1]:
        pieces += [turn.text, f"\n{turn.observation}\n" if turn.observation is not None else ""]
    return pieces[: 2 * k + 2]


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("cls", [LlamaForSequenceClassification, LlamaForTokenClassification])
def test_a_model_reads_each_turn_where_it_ends(build, cls, num_labels):
    judge = ProcessRewardModel(model(cls, num_labels=num_labels), tiny.tokenizer(), batch_size=3)
    trainer = build(advantage_estimator="mt_grpo", turn_reward_funcs=[judge], per_device_eval_batch_size=4)
    rollout = trainer.play([{"prompt": QUESTION, "answer": "Paris"}], num_generations=4)[2]
    tokenizer = tiny.tokenizer()
    for k, turn in enumerate(rollout.turns):
        pieces = text_before(rollout.turns, k)
        ids = [token for piece in pieces if piece for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        logits = judge.model(torch.tensor([ids])).logits[0]
        logits = logits[-1] if cls is LlamaForTokenClassification else logits
        expected = logits[0] if num_labels == 1 else logits.softmax(-1)[1]
        assert turn.credit["turn_reward"] == pytest.approx(expected.item(), abs=1e-5)
    assert len({turn.credit["turn_reward"] for turn in rollout.turns}) == 4


def test_a_model_is_given_by_its_folder(build, tmp_path):
    model(LlamaForTokenClassification, num_labels=2).save_pretrained(tmp_path / "judge")
    tiny.tokenizer().save_pretrained(tmp_path / "judge")
    trainer = build(
        advantage_estimator="gtpo", turn_reward_funcs=str(tmp_path / "judge"), per_device_eval_batch_size=4
    )
    assert all(0 < turn.rewards["judge"] < 1 for turn in turns_of(trainer))


def test_a_model_of_another_task_is_refused():
    with pytest.raises(ValueError, match="LlamaModel is neither"):
        ProcessRewardModel(model(LlamaModel), tiny.tokenizer())


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("cls", [LlamaForSequenceClassification, LlamaForTokenClassification])
def test_a_model_reads_what_is_called_by_a_chat_template(build, tmp_path, cls, as_folder):
    judge = model(cls, num_labels=1)
    judge.save_pretrained(tmp_path / "judge")
    tiny.tokenizer().save_pretrained(tmp_path / "judge")
    trainer = build(
        chat_rollouts(),
        advantage_estimator="mt_grpo",
        turn_reward_funcs=str(tmp_path / "judge") if as_folder else ProcessRewardModel(judge, tiny.tokenizer()),
        processing_class=tiny.chat_tokenizer(),
        dataset=Dataset.from_list(CHAT_ROWS),
        reward=chat_correct,
        per_device_eval_batch_size=4,
    )
    _, lyon, lyon_too, x = trainer.play(CHAT_ROWS[:1], num_generations=4)
    first = [own.turns[0].credit["turn_reward"] for own in (lyon, lyon_too, x)]
    assert [own.turns[0].text for own in (lyon, lyon_too, x)] == ["", "", ""]  # the calls alone are different
    assert first[0] == pytest.approx(first[1], abs=1e-6) and abs(first[0] - first[2]) > 1e-4
    # The token that ends a turn is not read
    tokenizer = tiny.tokenizer()
    call = tokenizer.decode(x.turns[0].ids).removesuffix("<|im_end|>")
    assert '"query": "x"' in call
    ids = tokenizer(QUESTION + "\n")["input_ids"] + tokenizer(call)["input_ids"]
    assert judge(torch.tensor([ids])).logits.flatten()[-1].item() == pytest.approx(first[2], abs=1e-5)


TEXTS = (["<answer>Rome</answer>"], ["<search>Lyon</search>", "<answer>Paris</answer> and more"], ["x", "y", "z"])


@pytest.mark.parametrize("pad_token_id", [7, None])
@pytest.mark.parametrize("cls", [LlamaForSequenceClassification, LlamaForTokenClassification])
def test_rewards_do_not_depend_on_the_size_of_a_batch(cls, pad_token_id):
    """The model's padding token is not the tokenizer's, or it has none."""
    one, eight = [
        read(ProcessRewardModel(model(cls, num_labels=1, pad_token_id=pad_token_id), tiny.tokenizer(), size), *TEXTS)
        for size in (1, 8)
    ]
    assert [len(own) for own in one] == [1, 2, 3]
    for left, right in zip(one, eight, strict=True):
        assert left == pytest.approx(right, abs=1e-6)


def test_a_padding_token_is_found_or_asked_for():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    judge = ProcessRewardModel(model(LlamaForSequenceClassification, pad_token_id=None), tokenizer)
    assert judge.model.config.pad_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has a padding token: set the tokenizer's pad_token"):
        ProcessRewardModel(model(LlamaForSequenceClassification, pad_token_id=None), tokenizer)


def beginning_tokenizer(chat_template=None):
    """One that begins a text with `<|im_start|>`."""
    tokenizer = tiny.tokenizer(chat_template)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", 1)])
    return tokenizer


def test_a_chat_template_writes_the_beginning_itself():
    tokenizer = beginning_tokenizer("{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}")
    judge = ProcessRewardModel(model(LlamaForSequenceClassification, num_labels=1), tokenizer)
    turn = Turn(tiny.tokenizer()("Paris")["input_ids"], {"role": "assistant", "content": "Paris"})
    rewards = [
        judge(turns=[[turn]], prompts=[prompt], decode=tiny.tokenizer().decode)
        for prompt in (QUESTION, [{"role": "user", "content": QUESTION}])
    ]
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize("begin", [[], [1]])
@pytest.mark.parametrize("cls", [GPT2ForSequenceClassification, GPT2ForTokenClassification])
def test_of_a_long_rollout_the_last_tokens_are_read(cls, begin):
    tokenizer = beginning_tokenizer() if begin else tiny.tokenizer()
    gpt2 = model(
        cls, GPT2Config, max_position_embeddings=32 + len(begin), num_labels=1, bos_token_id=None, eos_token_id=None
    )
    judge = ProcessRewardModel(gpt2, tokenizer, batch_size=2)
    texts = ["a city", "Lyon is in France", "the capital of France", "on and on and on and on", "<answer>Paris is it"]
    (rewards,) = read(judge, texts)
    pieces = [tiny.tokenizer()(text)["input_ids"] for text in (QUESTION, *texts)]
    ids, ends = [token for piece in pieces for token in piece], [*accumulate(map(len, pieces))][1:]
    assert ends[0] == ends[-1] - 32
    starts = [max(end - 32, 0) for end in ends]
    if (
        cls is GPT2ForTokenClassification
    ):  # one text has the end of as many of the last turns as fit, the next one the others
        in_last = [end > starts[-1] for end in ends]
        assert in_last == [False, True, True, True, True]
        starts = [starts[-1] if last else 0 for last in in_last]
    read_ids = [ids[start:end] for start, end in zip(starts, ends, strict=True)]
    expected = [judge.model(torch.tensor([begin + own])).logits.flatten()[-1].item() for own in read_ids]
    assert rewards == pytest.approx(expected, abs=1e-6)


def test_a_tokenizer_may_allow_less_than_there_are_positions():
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 30
    judge = ProcessRewardModel(model(LlamaForSequenceClassification, max_position_embeddings=32), tokenizer)
    assert judge.max_length == 30


def test_a_model_rewards_without_dropout():
    judge = ProcessRewardModel(model(LlamaForSequenceClassification, attention_dropout=0.5).train(), tiny.tokenizer())
    assert read(judge, *TEXTS) == read(judge, *TEXTS)


def test_a_model_that_was_placed_stays_there(build, tmp_path):
    """Moving one that is spread by a device map fails, and one that is quantised may."""
    model(LlamaForSequenceClassification, num_labels=1).save_pretrained(tmp_path / "judge")
    spread = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "judge", device_map={"model": "cpu", "score": "disk"}, offload_folder=tmp_path / "offload"
    )
    trainer = build(
        advantage_estimator="mt_grpo",
        turn_reward_funcs=ProcessRewardModel(spread, tiny.tokenizer()),
        per_device_eval_batch_size=4,
    )
    assert all(turn.credit["turn_reward"] is not None for turn in turns_of(trainer))
    assert spread.score.weight.is_meta


def test_a_quantised_model_stays_where_it_is(tmp_path):
    pytest.importorskip("bitsandbytes")
    model(LlamaForSequenceClassification, num_labels=1).save_pretrained(tmp_path / "judge")
    quantised = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "judge", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    ProcessRewardModel(quantised, tiny.tokenizer()).to(torch.device("meta"))
    assert quantised.device == torch.device("cpu")
    plain = ProcessRewardModel(model(LlamaForSequenceClassification), tiny.tokenizer())
    plain.to(torch.device("meta"))
    assert plain.model.device == torch.device("meta")


def test_a_folder_with_a_model_of_another_task_is_refused(tmp_path):
    tiny.model().save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match="LlamaForCausalLM is neither"):
        ProcessRewardModel(str(tmp_path / "policy"), tiny.tokenizer())
