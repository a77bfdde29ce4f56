"""Tags with real generation: stop strings on the transformers backend, and the stop strings that vLLM gets."""

import pytest
from datasets import Dataset
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

import tiny
from a2tgpo_trl import A2TGPOTrainer
from chain import CALL, LONG, PATHS, PROMPTS, chain
from conftest import search


@pytest.fixture
def tags(config, monkeypatch):
    """`tags(pad, paths=…, **options)`: a trainer of a chain, and what TRL's own generation returned to it, call by call."""

    def make(pad="<|endoftext|>", peft_config=None, paths=PATHS, **options):
        tokenizer = tiny.tokenizer()
        tokenizer.pad_token = pad
        trainer = A2TGPOTrainer(
            model=chain(tokenizer, paths),
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=config(max_completion_length=60, **{"advantage_estimator": "grpo", **options}),
            train_dataset=Dataset.from_list([{"prompt": "!", "answer": "Paris"}] * 4),
            processing_class=tokenizer,
            tools=[search],
            peft_config=peft_config,
        )
        raw, generate = [], GRPOTrainer._generate_single_turn

        def record(self, *args, **kwargs):
            ids, logprobs = generate(self, *args, **kwargs)
            raw.append(ids)
            return ids, logprobs

        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", record)
        return trainer, raw

    return make


def prompt_ids(trainer, prompts):
    return trainer._tokenizer(prompts)["input_ids"]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
@pytest.mark.parametrize("lora", [False, True])
def test_generation_stops_at_the_closing_tag(tags, pad, lora):
    peft_config = pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"]) if lora else None
    trainer, raw = tags(pad, peft_config)
    prompts = ["!", "?", "#"]
    ids, logprobs = trainer._generate_single_turn(prompt_ids(trainer, prompts), None, {}, 1)
    assert trainer._tokenizer.batch_decode(ids) == [CALL, LONG + CALL, "Paris.<|im_end|>"]
    assert trainer._tokenizer.pad_token_id not in ids[0] + ids[1]
    assert logprobs is None
    # Generation itself came to an end, with the longest of the three; 60 tokens were allowed
    assert max(map(len, raw[0])) == len(ids[1]) < 60
    # The first row was filled up while the second was written, of which TRL leaves what is not the end of a sequence
    filled = 1 if pad == "<|im_end|>" else len(ids[1]) - len(ids[0])
    assert raw[0][0] == ids[0] + [trainer._tokenizer.pad_token_id] * filled


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
def test_rollouts_of_real_generations(tags, pad):
    trainer, raw = tags(pad, advantage_estimator="a2tgpo", mask_truncated_completions=False)
    inputs = [{"prompt": prompt, "answer": "Paris"} for prompt in PROMPTS]
    batch = trainer._generate_and_score_completions(inputs)
    rows = [
        trainer._tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    observed = "\n<result>Lyon is in France.</result>\n"
    answer = "Paris.<|im_end|>"
    assert rows == [CALL + observed + answer, LONG + CALL + observed + answer, answer, "yen" * 60]
    written = [
        trainer._tokenizer.decode(ids[turns >= 0])
        for ids, turns in zip(batch["completion_ids"], batch["turn_ids"], strict=True)
    ]
    assert written == [CALL + answer, LONG + CALL + answer, answer, "yen" * 60]
    assert [len(turn) for turn in raw[1]] == [3, 3]  # both went on together, to the end of the sequence


AFTER = "</answer>" + "+" * 56  # and on, to the limit


@pytest.mark.parametrize(
    ("options", "written", "reason"),
    [
        ({}, "Paris</answer>", "answered"),
        (dict(answer_stop=""), "Paris" + AFTER, "length"),
        (dict(answer_stop="+++"), "Paris</answer>+++", "answered"),
        (dict(answer_template="{answer}+"), "Paris" + AFTER, "length"),
    ],
)
def test_the_answer_ends_the_rollout(tags, options, written, reason):
    """A base model goes on behind its answer, and writes the next question."""
    trainer, raw = tags(advantage_estimator="a2tgpo", paths=[["%", "Paris", "</", "answer", ">", "+", "+"]], **options)
    batch = trainer._generate_and_score_completions([{"prompt": "%", "answer": "Paris"}] * 4)
    assert trainer._tokenizer.batch_decode(batch["completion_ids"]) == [written] * 4
    assert trainer._metrics["train"][f"rollout/stop/{reason}"] == [1.0]
    assert len(raw[0][0]) == batch["completion_ids"].size(1)  # generation itself came to an end


@pytest.mark.parametrize("fails", [False, True])
def test_generate_is_restored(tags, monkeypatch, fails):
    trainer, _ = tags()
    seen = []

    def generate(self, *args, **kwargs):
        seen.append("generate" in vars(self.model))
        if fails:
            raise RuntimeError("out of memory")
        return [[30]], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer._generate_single_turn([[5]], None, {}, 1)
    else:
        trainer._generate_single_turn([[5]], None, {}, 1)
    assert seen == [True]  # it was replaced meanwhile
    assert "generate" not in vars(trainer.model)
    assert trainer.model.generate.__func__ is type(trainer.model).generate


@pytest.mark.parametrize("given", ["E)", ["E)"]])
def test_stop_strings_of_the_user_are_kept(tags, given):
    trainer, raw = tags(generation_kwargs={"stop_strings": given})
    ids, _ = trainer._generate_single_turn(prompt_ids(trainer, ["&"]), None, {}, 1)
    assert trainer._tokenizer.batch_decode(ids) == ["(E)"]
    assert trainer.args.generation_kwargs == {"stop_strings": given}
    trainer._generate_single_turn(prompt_ids(trainer, ["!"]), None, {}, 1)
    assert trainer._tokenizer.batch_decode(raw[1]) == [CALL]


def test_nothing_is_left_behind_a_stop_string_of_the_user(tags):
    trainer, _ = tags(generation_kwargs={"stop_strings": ["E)"]})
    ids, _ = trainer._generate_single_turn(prompt_ids(trainer, ["&", "?"]), None, {}, 1)
    assert trainer._tokenizer.batch_decode(ids) == ["(E)", LONG + CALL]


# ---- vLLM


@pytest.fixture
def no_engine(monkeypatch):
    """TRL's own `VLLMGeneration`, which starts no engine."""
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: None)


@pytest.mark.parametrize(
    ("given", "stop"),
    [
        ({}, ["</search>", "</answer>"]),
        ({"seed": 1}, ["</search>", "</answer>"]),
        ({"stop": ["</answer>"]}, ["</answer>", "</search>"]),
        ({"stop": "</answer>"}, ["</answer>", "</search>"]),
        ({"stop": None}, ["</search>", "</answer>"]),
        ({"include_stop_str_in_output": False}, ["</search>", "</answer>"]),
    ],
)
def test_sampling_parameters_for_vllm(tags, no_engine, given, stop):
    trainer, _ = tags(use_vllm=True, generation_kwargs=dict(given))
    expected = {**given, "stop": stop, "include_stop_str_in_output": True, "skip_special_tokens": False}
    assert trainer.vllm_generation.generation_kwargs == expected


def test_generation_kwargs_of_the_user_stay_as_they_are(tags, no_engine):
    trainer, _ = tags(use_vllm=True, generation_kwargs={"stop": ["</answer>"]})
    assert trainer.args.generation_kwargs == {"stop": ["</answer>"]}  # TRL hands vLLM this very dict


def test_log_probabilities_are_cut_with_their_tokens(tags, monkeypatch):
    trainer, _ = tags()
    ids = trainer._tokenizer([CALL + "<|im_end|>", "Paris<|im_end|>"])["input_ids"]
    logprobs = [[-float(token) for token in turn] for turn in ids]  # as vLLM tells them
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *args, **kwargs: (ids, logprobs))
    cut, cut_logprobs = trainer._generate_single_turn([[5], [6]], None, {}, 1)
    assert trainer._tokenizer.batch_decode(cut) == [CALL, "Paris<|im_end|>"]
    assert cut_logprobs == [[-float(token) for token in turn] for turn in cut]
