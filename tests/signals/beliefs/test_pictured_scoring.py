"""Beliefs in contexts with pictures, against one unpadded forward per context in float64."""

import math
import os
import subprocess
import sys

import pytest
import torch
import trl.trainer.utils
from accelerate import Accelerator
from PIL import Image
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

import tiny_vision
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.functional import observation_ends, turn_ends, turn_ids
from a2tgpo_trl.integrations.architecture import why_no_token_tree, why_random
from a2tgpo_trl.rollout import Rollout, Turn
from a2tgpo_trl.rollout.pictures import digest
from a2tgpo_trl.signals.beliefs import BeliefScorer, queries, shared_beliefs
from pictured import FAMILIES, ONLY_PREFIXES, agree, contexts_of, naive_belief
from scoring import TEMPLATE

RED, BLUE = map(tiny_vision.picture, ("red", "blue"))
WIDE, HIGH = tiny_vision.picture("green", (40, 16)), tiny_vision.picture("yellow", (16, 24))


def ids(processor, text, images=()):
    """Tokens of a text, in which `@` stands for a picture."""
    name = (
        "<start_of_image>"
        if "gemma" in type(processor).__name__.lower()
        else "<|vision_start|><|image_pad|><|vision_end|>"
    )
    return processor(text=text.replace("@", name), images=list(images) or None)["input_ids"][0]


def rollout(processor, prompt, images, *turns):
    """`turns`: what is written, what is read, and the pictures in it."""
    message = {"role": "assistant", "content": ""}
    played = [
        Turn(ids(processor, said), message, observation_ids=ids(processor, read, seen) if read else [], images=seen)
        for said, read, seen in turns
    ]
    return Rollout(ids(processor, prompt, images), played, images=images)


def rollouts(processor):
    """Pictures in prompts, in observations, in both and in none; the same prompt twice, and once with another picture."""
    answer = ("<answer>Paris</answer>", "", [])
    return [
        rollout(processor, "a @ b", [RED], ("search", "found @ it", [BLUE]), ("more of it", "and @ or @ too", [RED, WIDE]), answer),
        rollout(processor, "a @ b", [RED.copy()], ("search", "found @ it", [RED]), answer),
        rollout(processor, "a @ b", [tiny_vision.picture("black")], ("search", "found nothing", []), answer),
        rollout(processor, "no picture in the prompt of this row", [], ("x", "none", []), ("search", "found @ it", [WIDE]), answer),
        rollout(processor, "two: @@ here", [WIDE, HIGH], answer),
        rollout(processor, "no picture", [], ("search", "at all", []), answer),
    ]  # fmt: skip


def batch_of(rollouts):
    """As TRL pads them: prompts on the left, completions on the right."""
    longest = max(len(rollout.prompt_ids) for rollout in rollouts) + 3
    width = max(rollout.completion_length for rollout in rollouts) + 2
    batch = {name: [] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")}
    for rollout in rollouts:
        left, right = longest - len(rollout.prompt_ids), width - rollout.completion_length
        batch["prompt_ids"].append([0] * left + rollout.prompt_ids)
        batch["prompt_mask"].append([0] * left + [1] * len(rollout.prompt_ids))
        batch["completion_ids"].append(rollout.completion_ids + [0] * right)
        batch["completion_mask"].append([1] * rollout.completion_length + [0] * right)
        batch["tool_mask"].append(rollout.tool_mask + [1] * right)
    return {name: torch.tensor(rows) for name, rows in batch.items()}


def naive(family, rollouts, processor, answer="Paris", **options):
    model = tiny_vision.model(family).double().eval()
    return [
        [naive_belief(model, processor, *context, answer) for context in contexts_of(rollout, **options)]
        for rollout in rollouts
    ]


@pytest.fixture
def in_double_precision(monkeypatch):
    """All of it: TRL's fused LM head works in float32, this one as the model does."""

    class Exact:
        @staticmethod
        def apply(states, weight, bias, labels, temperature, chunk_size, softcap, scale, outputs):
            assert (bias, temperature, softcap, scale) == (None, 1.0, None, 1.0)
            logps = (states @ weight.T).log_softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
            return logps, None, None, None, None

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Exact)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_scorer(family, processor, dtype=torch.float64, **options):
    model = tiny_vision.model(family).to(dtype).eval()
    add_fused_lm_head(model)
    return scorer_of(model, processor, **options), model


def scorer_of(model, processor, **options):
    args = A2TGPOConfig(answer_template=TEMPLATE, disable_tqdm=True, use_cpu=True, bf16=False, **options)
    return BeliefScorer(model, processor, Accelerator(cpu=True), args, 2048)


def plan_of(scorer, rollouts, from_turn_ends=False, answers=("Paris",)):
    batch = batch_of(rollouts)
    masks = batch["completion_mask"], batch["tool_mask"]
    ends = observation_ends(*masks)
    if from_turn_ends:
        ends = torch.stack([turn_ends(turn_ids(*masks)).where(ends >= 0, -1), ends], dim=2).flatten(1)
    return scorer.plan(batch, ends, [list(answers)] * len(rollouts), rollouts)


def measured(scorer, model, rollouts, **options):
    plan = plan_of(scorer, rollouts, **options)
    return shared_beliefs(scorer.measure(model, plan, batch_size=2), plan.keys)


def with_shared_forward(scorer, model, rollouts, batch_size=2, **options):
    plan, batch = plan_of(scorer, rollouts, **options), batch_of(rollouts)
    shared = scorer.share_forward(model, plan)
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    for start in range(0, len(rollouts), batch_size):
        rows = slice(start, start + batch_size)
        images = [image for rollout in rollouts[rows] for image in rollout.all_images]
        inputs = {"input_ids": tokens[rows], "attention_mask": mask[rows]}
        if images:
            inputs |= scorer.pictures.reader.processor.image_processor(images=images, return_tensors="pt")
            inputs["mm_token_type_ids"] = (tokens[rows] == model.config.image_token_id).long()
        with torch.no_grad():
            shared(**inputs, labels=tokens[rows], fused_lm_head=True)
    return shared_beliefs(torch.cat(shared.beliefs), plan.keys)


PATHS = [(family, path) for family in FAMILIES for path in ("trees", "prefixes", "shared")]


@pytest.mark.parametrize("from_turn_ends", [False, True], ids=["turn_start", "turn_end"])
@pytest.mark.parametrize(
    ("family", "path"), [case for case in PATHS if case[1] == "prefixes" or case[0] not in ONLY_PREFIXES]
)
def test_every_path_agrees_with_the_naive_loop(family, path, from_turn_ends, in_double_precision):
    processor = tiny_vision.processor(family)
    scorer, model = make_scorer(family, processor)
    assert (scorer.why_no_shared_forward(model) is None) == (family not in ONLY_PREFIXES)
    if path == "prefixes":
        scorer.why_prefixes = "as if"
    played = rollouts(processor)
    score = with_shared_forward if path == "shared" else measured
    actual = score(scorer, model, played, from_turn_ends=from_turn_ends)
    agree(actual, naive(family, played, processor, from_turn_ends=from_turn_ends))


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_attention_and_one_precision(family):
    """As a run has it, in float32; flex attention not compiled."""
    processor = tiny_vision.processor(family)
    scorer, model = make_scorer(family, processor, torch.float32)
    scorer.attention = "flex"
    played = rollouts(processor)
    with torch.compiler.set_stance("force_eager"):
        agree(measured(scorer, model, played), naive(family, played, processor), atol=1e-4)


@pytest.mark.parametrize("aliases", ["max", "logsumexp"])
@pytest.mark.parametrize("score", [measured, with_shared_forward])
def test_aliases(score, aliases, in_double_precision):
    names = ["Paris", "Paris, France", "x"]
    processor = tiny_vision.processor("qwen2_5_vl")
    scorer, model = make_scorer("qwen2_5_vl", processor, answer_aliases=aliases)
    played = rollouts(processor)[:3]
    tables = [naive("qwen2_5_vl", played, processor, answer=name) for name in names]
    join = max if aliases == "max" else lambda beliefs: math.log(sum(map(math.exp, beliefs)))
    expected = [[join(beliefs) for beliefs in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]
    agree(score(scorer, model, played, answers=names), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_tokens_with_other_pictures_are_other_contexts(family):
    """And equal pictures are one, whichever object holds them: its context is probed once."""
    processor = tiny_vision.processor(family)
    scorer, model = make_scorer(family, processor, torch.float32)
    first, same, other, *_ = played = rollouts(processor)[:3]
    assert first.prompt_ids == same.prompt_ids == other.prompt_ids and first.images[0] is not same.images[0]
    rows = plan_of(scorer, played).rows
    assert [row.ends[0] is not None for row in rows] == [True, False, True]
    beliefs = measured(scorer, model, played)
    assert beliefs[0, 0] == beliefs[1, 0] and abs(beliefs[0, 0] - beliefs[2, 0]) > 1e-3
    # The same words after another picture
    blue, red = first.turns[0], same.turns[0]
    assert (blue.ids, blue.observation_ids) == (red.ids, red.observation_ids)
    assert abs(beliefs[0, 1] - beliefs[1, 1]) > 1e-3


def counted(scorer, monkeypatch):
    """Shapes of what the model is given: token ids, and pixels."""
    shapes, score = [], scorer._score

    def counting(model, **inputs):
        pixels = inputs.get("pixel_values")
        shapes.append((inputs["input_ids"].numel(), 0 if pixels is None else len(pixels)))
        return score(model, **inputs)

    monkeypatch.setattr(scorer, "_score", counting)
    return shapes


def test_a_tree_reads_each_token_and_each_picture_once(monkeypatch):
    processor = tiny_vision.processor("qwen2_5_vl")
    scorer, model = make_scorer("qwen2_5_vl", processor, torch.float32, ig_tokens_per_batch=10_000)
    played = rollouts(processor)
    found = queries(plan_of(scorer, played).rows)
    distinct = {tuple(query.ids[:n]) for query in found for n in range(1, len(query.ids) + 1)}

    def patches(images):
        return sum(len(processor.image_processor(images=[image])["pixel_values"]) for image in images)

    images = [image for rollout in played for image in rollout.all_images]
    images.remove(played[1].images[0])  # the row begins as the one before, and reads the picture there
    shapes = counted(scorer, monkeypatch)
    measured(scorer, model, played)
    assert shapes == [(len(distinct), patches(images))]
    shapes.clear()
    scorer.why_prefixes = "as if"
    measured(scorer, model, played)
    # Every context with what stands before it, and padding; the last label too
    assert sum(size for size, _ in shapes) >= sum(len(query.ids) + 1 for query in found) > 1.5 * len(distinct)
    again = [picture.image for query in found for picture in query.pictures_from(0)]
    assert sum(size for _, size in shapes) == patches(again) > patches(images)


def test_text_alone_comes_without_pixels(monkeypatch, in_double_precision):
    for family in FAMILIES:
        processor = tiny_vision.processor(family)
        scorer, model = make_scorer(family, processor)
        played = [
            rollout(processor, f"prompt {i}", [], ("search", f"found {i}", []), ("x", "and more", []))
            for i in range(4)
        ]
        shapes = counted(scorer, monkeypatch)
        agree(measured(scorer, model, played), naive(family, played, processor), atol=1e-6)
        assert shapes and not any(pixels for _, pixels in shapes)


@pytest.mark.parametrize("path", ["trees", "prefixes"])
def test_a_process_that_waits_for_others_runs_the_vision_part_too(path, monkeypatch):
    processor = tiny_vision.processor("qwen2_5_vl")
    scorer, model = make_scorer("qwen2_5_vl", processor, torch.float32)
    scorer.why_prefixes = "as if" if path == "prefixes" else None
    played = rollouts(processor)[:2]
    alone, plan = measured(scorer, model, played), plan_of(scorer, played)
    monkeypatch.setattr(scorer, "_on_all", lambda number: torch.tensor([number, number + 1]))
    shapes = counted(scorer, monkeypatch)
    beliefs = shared_beliefs(scorer.measure(model, plan, batch_size=2), plan.keys)
    assert shapes[-1][1] > 0 and len(shapes) > 1
    torch.testing.assert_close(beliefs, alone, equal_nan=True, atol=0, rtol=0)


@pytest.mark.processes
def test_pictures_have_the_same_numbers_on_every_process():
    code = """
import tiny_vision
from a2tgpo_trl.signals.beliefs.pictures import ContextPictures
from a2tgpo_trl.rollout import Rollout
reader = ContextPictures(tiny_vision.processor("qwen2_5_vl"), tiny_vision.model("qwen2_5_vl"))
image = tiny_vision.picture("red")
place = reader.reader.image_token_id
print(reader.spans([Rollout([5, place, 6], images=[image])])[0][0].number)
"""
    told = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        told.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(told) == 1


def test_what_makes_another_picture():
    red = Image.new("RGB", (2, 3), "red")
    wide, grey, clear = Image.new("RGB", (3, 2), "red"), Image.new("L", (2, 9)), Image.new("RGBA", (2, 3), "red")
    palettes = [Image.new("P", (2, 3)) for _ in range(2)]
    palettes[0].putpalette([9, 9, 9])
    palettes[1].putpalette([0, 9, 0])
    names = [digest([image]) for image in (red, wide, grey, clear, *palettes)]
    assert len(set(names)) == 6
    assert digest([Image.new("RGB", (2, 3), (255, 0, 0))]) == names[0]


def test_pictures_without_placeholders_are_an_error():
    processor = tiny_vision.processor("gemma3")
    scorer, _ = make_scorer("gemma3", processor, torch.float32)
    with pytest.raises(ValueError, match="with 1 pictures has none of their placeholders"):
        scorer.pictures.spans([Rollout([5, 6, 7], images=[RED])])


def test_a_context_that_ends_with_a_picture(in_double_precision):
    """A tree goes on from it; after TRL's forward the picture is gone."""
    processor = tiny_vision.processor("qwen2_5_vl")
    scorer, model = make_scorer("qwen2_5_vl", processor)
    played = rollouts(processor)
    for one in played:
        while one.images and one.prompt_ids[-1] != model.config.image_token_id:
            one.prompt_ids.pop()
    agree(measured(scorer, model, played), naive("qwen2_5_vl", played, processor))
    with pytest.raises(ValueError, match="A prompt or observation ends with a picture"):
        with_shared_forward(scorer, model, played)


def test_a_picture_seen_in_both_directions_fits_into_no_tree(in_double_precision):
    """Where nothing else stands in the way: a Gemma 3 without sliding windows."""

    def whole():
        torch.manual_seed(0)
        config = tiny_vision.model("gemma3").config.to_dict()
        text = {name: value for name, value in config["text_config"].items() if name != "rope_parameters"}
        config["text_config"] = {**text, "layer_types": ["full_attention"] * 2}
        return Gemma3ForConditionalGeneration(Gemma3Config(**config)).double().eval()

    processor, model = tiny_vision.processor("gemma3"), whole()
    assert why_no_token_tree(model) is None
    add_fused_lm_head(model)
    scorer = scorer_of(model, processor)
    assert "gemma3 attends to the tokens of a picture in both directions" in scorer.why_prefixes
    played, reference = rollouts(processor), whole()
    expected = [[naive_belief(reference, processor, *context) for context in contexts_of(one)] for one in played]
    agree(measured(scorer, model, played), expected)


def test_dropout_of_the_vision_part_counts():
    model = tiny_vision.model("gemma3").train()
    assert why_random(model) is None
    model.config.vision_config.attention_dropout = 0.1
    assert why_random(model) == "attention_dropout is on"
