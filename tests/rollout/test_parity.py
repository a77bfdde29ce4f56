"""The same generations, the same result: our loop in the chat protocol against TRL's own, and what stands around it."""

import copy
import json
from itertools import chain

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import parse_response

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer

END = "<|im_end|>"
ANSWER = f"The capital is Paris.{END}"


def search(query: str) -> str:
    """
    Look something up.

    Args:
        query: What to look for.
    """
    return {"Lyon": "Lyon is in France.", "everything": "many words " * 100}.get(query, f"Nothing on {query}.")


def add(a: int, b: int) -> int:
    """
    Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def fail(query: str) -> str:
    """
    Fail.

    Args:
        query: At what.
    """
    raise RuntimeError(f"no {query} today")


async def browse(url: str) -> str:
    """
    Fetch a page.

    Args:
        url: Its address.
    """
    if url == "down":
        raise TimeoutError("no answer")
    return f"page {url}"


def call(name="search", **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


LYON = call(query="Lyon") + END
TURNS_0_1_3 = [[ANSWER], [LYON, ANSWER], [LYON, call(query="France") + END, "I look. " + LYON, ANSWER], [LYON, ANSWER]]
PARALLEL = [
    [f"{call(query='Lyon')}\n{call('add', a=1, b=2)}{END}", ANSWER],
    [f"{call('browse', url='a')}\n{call('browse', url='down')}\n{call('browse', url='b')}{END}", ANSWER],
    [f"{call('nowhere', x='y')}\n{call(query='Lyon')}{END}", LYON, ANSWER],
    [ANSWER],
]
FAILING = [
    [call("fail", query="luck") + END, ANSWER],
    [call("nowhere", query="Lyon") + END, LYON, ANSWER],
    [call("search") + END, ANSWER],  # no argument
    [call("search", query="Lyon", more="x") + END, ANSWER],
]
MALFORMED = [
    [f'<tool_call>\n{{"name": "search"}}\n</tool_call>{END}', ANSWER],
    [LYON, f'<tool_call>\n{{"name": "search"}}\n</tool_call>{END}', ANSWER],
    [call(query="Lyon").removesuffix("\n</tool_call>"), ANSWER],  # not closed, and yet a call
    [ANSWER],
]
LONG = [
    [call(query="everything") + END],  # its result fits no budget below 800: dropped, nothing follows
    [LYON, call(query="everything") + END],
    [LYON, "a rather long answer " * 9 + END],
    [ANSWER],
]
ANSWERS = [[ANSWER], [ANSWER + END], ["no end"], [f"{END}"]]


class Scripted:
    """Plays the same generations to both trainers."""

    def __init__(self, monkeypatch, config):
        self.monkeypatch, self.config = monkeypatch, config

    def play(self, trainer_class, rollouts, logprobs, inputs, max_position_embeddings=4096, arguments=None, **options):
        script = tiny.Script(copy.deepcopy(rollouts))

        def generate(trainer, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
            turns = script.write(trainer._tokenizer, prompt_ids)
            values = [[-i - token / 1000 for i, token in enumerate(turn)] for turn in turns]
            return turns, values if logprobs else None

        self.monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
        ours = trainer_class is A2TGPOTrainer
        options = {"per_device_train_batch_size": 4, "steps_per_generation": 1, **options}
        if ours:
            options.setdefault("advantage_estimator", "grpo")
            options.setdefault("lockstep", True)  # as in TRL, so that the script meets the same batches
        trainer = trainer_class(
            model=tiny.model(max_position_embeddings=max_position_embeddings),
            reward_funcs=lambda completions, **kwargs: [float(len(str(completion))) for completion in completions],
            args=self.config(A2TGPOConfig if ours else GRPOConfig, **options),
            train_dataset=Dataset.from_list(inputs),
            processing_class=tiny.chat_tokenizer(),
            **(arguments or {"tools": [search, add, fail, browse]}),
        )
        generate_all, played = trainer._generate, []

        def keep(prompts):
            played.append(generate_all(prompts))
            return copy.deepcopy(played[0])

        trainer._generate = keep
        batch = trainer._generate_and_score_completions(copy.deepcopy(inputs))
        return played[0], batch, dict(trainer._metrics["train"]), script.calls

    def both(self, rollouts, logprobs=False, inputs=None, **options):
        inputs = inputs or [{"prompt": [{"role": "user", "content": "Where is Lyon?"}], "answer": "Paris"}] * 4
        return [self.play(cls, rollouts, logprobs, inputs, **options) for cls in (A2TGPOTrainer, GRPOTrainer)]


@pytest.fixture
def scripted(monkeypatch, config):
    return Scripted(monkeypatch, config)


FIELDS = [
    "prompt_ids",
    "completion_ids",
    "tool_mask",
    "completions",
    "logprobs",
    "extra_fields",
    "images",
    "tool_images",
]


def assert_same(ours, theirs):
    our_output, our_batch, our_metrics, our_contexts = ours
    output, batch, metrics, contexts = theirs
    for field, our_value, value in zip(FIELDS, our_output, output, strict=True):
        assert our_value == value, field
    theirs = chain(*contexts)
    assert all(context in theirs for context in chain(*our_contexts))  # ours skip turns that have no room for a token
    assert {name: our_metrics[name] for name in metrics} == metrics
    assert all(
        name.startswith(("rollout/", "tools/", "turns/", "advantages/"))
        for name in our_metrics.keys() - metrics.keys()
    )
    assert {"completions/mean_length", "completions/clipped_ratio"} < metrics.keys()
    assert our_batch.keys() == batch.keys() | {"turn_ids"}
    for key, value in batch.items():
        assert torch.equal(our_batch[key], value) if isinstance(value, torch.Tensor) else our_batch[key] == value, key


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize(
    ("rollouts", "calls", "failures"),
    [(TURNS_0_1_3, 5, 0), (PARALLEL, 8, 2), (FAILING, 5, 4), (MALFORMED, 4, 2), (ANSWERS, 0, 0)],
    ids=["turns", "parallel", "failing", "malformed", "answers"],
)
def test_same_as_trl(scripted, rollouts, calls, failures, logprobs):
    ours, theirs = scripted.both(rollouts, logprobs, max_completion_length=1000)
    assert_same(ours, theirs)
    assert theirs[2]["tools/call_frequency"] == [calls / 4]
    assert theirs[2]["tools/failure_frequency"] == [pytest.approx(failures / max(calls, 1))]


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("max_completion_length", [60, 84, 85, 86, 110, 200])
def test_same_as_trl_out_of_tokens(scripted, max_completion_length, logprobs):
    ours, theirs = scripted.both(LONG, logprobs, max_completion_length=max_completion_length)
    assert_same(ours, theirs)
    lengths = list(map(len, theirs[0][1]))
    # A call of 54 tokens, a result of 31, an answer of 109
    assert lengths[2] == (min(max_completion_length, 194) if max_completion_length >= 85 else 54)


@pytest.mark.parametrize("spare", [-1, 0, 1, 40, 1000])
def test_same_as_trl_up_to_the_end_of_the_context(scripted, spare):
    tokenizer = tiny.chat_tokenizer()
    prompt = [{"role": "user", "content": "Where is Lyon?"}]
    rendered = tokenizer.apply_chat_template(
        prompt, tools=[search, add, fail, browse], add_generation_prompt=True, return_dict=False
    )
    context = len(rendered) + 85 + spare
    ours, theirs = scripted.both(LONG, max_completion_length=1000, max_position_embeddings=context)
    if spare in (1, 40):  # TRL writes on where the model has no positions
        longest = context - len(rendered)
        assert max(map(len, theirs[0][1])) > longest
        assert ours[0][1] == [ids[:longest] for ids in theirs[0][1]]
        assert ours[0][2] == [mask[:longest] for mask in theirs[0][2]]
    else:
        assert_same(ours, theirs)
    assert (len(theirs[0][1][2]) > 54) is (spare > 0)


@pytest.mark.parametrize("max_tool_calling_iterations", [0, 1, 2])
def test_same_as_trl_out_of_tool_turns(scripted, max_tool_calling_iterations):
    options = dict(max_completion_length=1000, max_tool_calling_iterations=max_tool_calling_iterations)
    assert_same(*scripted.both(TURNS_0_1_3, True, **options))


def test_truncated_completions_are_masked_as_in_trl(scripted):
    options = dict(max_completion_length=110, mask_truncated_completions=True)
    assert_same(*scripted.both(LONG, **options))


def test_generation_does_not_depend_on_the_estimator(scripted):
    ours, theirs = scripted.both(TURNS_0_1_3, max_completion_length=1000)
    inputs = [{"prompt": [{"role": "user", "content": "Where is Lyon?"}], "answer": "Paris"}] * 4
    options = dict(advantage_estimator="a2tgpo", max_completion_length=1000)
    credited = scripted.play(A2TGPOTrainer, TURNS_0_1_3, False, inputs, **options)
    assert credited[0] == ours[0] == theirs[0]
    assert credited[2].items() >= theirs[2].items()
    assert (credited[1]["turn_ids"].amax(dim=1) + 1).tolist() == [1, 2, 4, 2]


# ---- environments


class Library:
    """Each rollout has one of its own, which numbers the calls it gets."""

    def reset(self, answer, **kwargs):
        self.calls = 0
        return f" Hint: {answer}."

    def search(self, query: str) -> str:
        """
        Look something up.

        Args:
            query: What to look for.
        """
        self.calls += 1
        return f"{query} was question {self.calls}"

    def close(self) -> str:
        """Close the library."""
        raise RuntimeError("it is never closed")


class Atlas(Library):
    def reset(self, **kwargs):
        self.calls = 10

    async def locate(self, city: str, digits: int = 1) -> str:
        """
        Locate a city.

        Args:
            city: Which.
            digits: How exactly.
        """
        self.calls += 1
        return f"{city} {self.calls:.{digits}f}"


ENVIRONMENT_TURNS = [
    [LYON, LYON, ANSWER],
    [call("locate", city="Lyon", digits=3) + END, ANSWER],
    [call("close") + END, LYON, ANSWER],
    [ANSWER],
]


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("tools", [None, [add]])
def test_environments_same_as_trl(scripted, several, tools, logprobs):
    factory = {"library": Library, "atlas": Atlas} if several else Library
    inputs = [
        {"prompt": [{"role": "user", "content": "Where?"}], "answer": "Paris", "environment": name}
        for name in ("library", "atlas", "library", "atlas")
    ]
    arguments = {"environment_factory": factory, "tools": tools}
    ours, theirs = scripted.both(ENVIRONMENT_TURNS, logprobs, inputs, arguments=arguments, max_completion_length=1000)
    assert_same(ours, theirs)
    text = tiny.chat_tokenizer().batch_decode(theirs[0][1])
    assert "Lyon was question 2" in text[0]  # the environment of the rollout kept its state
    assert ("Lyon 11.000" if several else "Tool locate not found.") in text[1]
    assert "it is never closed" in text[2]


def test_turns_are_parsed_with_the_schemas_of_their_environment(scripted, monkeypatch):
    parsed = []

    def spy(tokenizer, ids, prefix=None, tools=None):
        parsed[-1][tuple(prefix), tuple(ids)] = [tool.__qualname__ for tool in tools]
        return parse_response(tokenizer, ids, prefix=prefix, tools=tools)

    monkeypatch.setattr("trl.trainer.grpo_trainer.parse_response", spy)
    monkeypatch.setattr("a2tgpo_trl.rollout.protocols.chat.parse_response", spy)
    inputs = [
        {"prompt": [{"role": "user", "content": "Where?"}], "answer": "Paris", "environment": name}
        for name in ("library", "atlas", "library", "atlas")
    ]
    arguments = {"environment_factory": {"library": Library, "atlas": Atlas}}
    for trainer_class in (A2TGPOTrainer, GRPOTrainer):
        parsed.append({})
        options = dict(arguments=arguments, max_completion_length=1000)
        scripted.play(trainer_class, ENVIRONMENT_TURNS, False, inputs, **options)
    ours, theirs = parsed
    assert ours == theirs
    assert len({tuple(tools) for tools in theirs.values()}) == 2


# ---- a rollout function of the user's own


def env_mask_rollouts(prompts, trainer):
    completions = ["<search>Lyon</search>", "a", "b", "c"]
    ids = [trainer._tokenizer(text)["input_ids"] + [2] for text in completions]
    masks = [[1] * len(row) for row in ids]
    #        < search > Lyon < / search > end
    ids[0], masks[0] = ids[0][:8], [1, 1, 0, 0, 1, 0, 1, 1]
    ids[1], masks[1] = ids[0][:5], [0, 1, 1, 0, 0]
    return {
        "prompt_ids": [[5, 6, 7]] * 4,
        "completion_ids": ids,
        "logprobs": [[-0.5] * len(row) for row in ids],
        "env_mask": masks,
        "steps": [1, 2, 3, 4],
    }


def test_rollout_func_same_as_trl(scripted):
    arguments = {"rollout_func": env_mask_rollouts}
    inputs = [{"prompt": "Where is Lyon?", "answer": "Paris"}] * 4
    ours, theirs = scripted.both([], inputs=inputs, arguments=arguments)
    assert_same(ours, theirs)
    assert theirs[0][2][0] == [1, 1, 0, 0, 1, 0, 1, 1]
    assert theirs[0][5] == {"steps": [1, 2, 3, 4]}


def test_env_mask_gives_the_turns(scripted):
    inputs = [{"prompt": "Where is Lyon?", "answer": "Paris"}] * 4
    arguments = {"rollout_func": env_mask_rollouts}
    options = dict(advantage_estimator="a2tgpo", arguments=arguments)
    _, batch, _, _ = scripted.play(A2TGPOTrainer, [], False, inputs, **options)
    assert batch["turn_ids"].tolist() == [
        [0, 0, -1, -1, 1, -1, 2, 2],
        [-1, 0, 0, -1, -1, -1, -1, -1],
        [0, 0, -1, -1, -1, -1, -1, -1],
        [0, 0, -1, -1, -1, -1, -1, -1],
    ]
    # Gains after each turn that an observation follows: two of the first row, one of the second
    assert (~batch["information_gain"].isnan()).tolist() == [
        [True, True, False],
        [True, False, False],
        [False, False, False],
        [False, False, False],
    ]
