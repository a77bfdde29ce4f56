"""Training on pictures: in prompts, and in what tools return. TRL is the judge, and one forward from scratch."""

import copy
import re
from io import BytesIO
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from PIL import Image, ImageChops, ImageStat
from PIL.PngImagePlugin import PngInfo
from trl import GRPOConfig, GRPOTrainer

import chance
import tiny_vision
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.integrations.replaced import replaced
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.records.thumbnails import thumbnail
from a2tgpo_trl.report.completions import read_completions
from a2tgpo_trl.rollout import Rollout, StopReason, TagProtocol, ToolCall, Turn
from a2tgpo_trl.rollout.generation.backends import VLLMBackend
from a2tgpo_trl.rollout.pictures import PictureReader, digest, pictures_in
from a2tgpo_trl.rollout.player import _check_prompts
from a2tgpo_trl.signals.states import state_keys
from conftest import same, weights
from tiny_vision import picture

FAMILIES = list(tiny_vision.MODELS)
CALLING = {"qwen2_5_vl": 4, "qwen3_vl": 5, "qwen3_5": 7}
"""Families with a chat template that calls tools, and seeds of random models that do so now and then."""
RED, BLUE = picture("red"), picture("blue", (32, 24))


def user(*content):
    blocks = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return [{"role": "user", "content": blocks}]


def asked(text):
    return [{"role": "user", "content": text}]


ROWS = {
    "image": [{"prompt": asked("What is this?"), "image": RED}, {"prompt": asked("And this?"), "image": BLUE}],
    "images": [
        {"prompt": asked("What are these?"), "images": [RED, BLUE]},
        {"prompt": asked("What?"), "images": [BLUE]},
    ],
    "blocks": [{"prompt": user(RED, "or", BLUE, "?")}, {"prompt": user("What is", picture("green"))}],
    "text": [{"prompt": asked("What is red?")}, {"prompt": asked("And what is blue, and why?")}],
}


def by_length(completions, **kwargs):
    return [float(len(str(completion)) % 7) for completion in completions]


def settings(cls, processor, **options):
    """The same for TRL, which lets a model write placeholders of pictures, and then reads pictures that are not there."""
    placeholders = [*processor.image_token_ids, *(token for token in processor.video_token_ids if token is not None)]
    if cls is GRPOTrainer:
        options["generation_kwargs"] = {**options.get("generation_kwargs", {}), "suppress_tokens": placeholders}
    else:
        options.setdefault("advantage_estimator", "grpo")
    return options


@pytest.fixture
def trainers(config):
    """`trainers(cls, family, rows, **options)`: a trainer of a tiny model for pictures."""

    def make(cls, family, rows, reward=by_length, tools=None, ends=None, model=None, **options):
        processor = tiny_vision.processor(family)
        options = {"max_completion_length": 12, "per_device_train_batch_size": 4, **options}
        model = model or tiny_vision.model(family)
        if ends:
            model.generation_config.eos_token_id = ends
        arguments = {
            name: options.pop(name)
            for name in ("turn_reward_funcs", "environment_factory", "rollout_func", "peft_config")
            if name in options
        }
        return cls(
            model,
            reward,
            config(A2TGPOConfig if cls is A2TGPOTrainer else GRPOConfig, **settings(cls, processor, **options)),
            stream(rows) if isinstance(rows[0]["prompt"][0]["content"], list) else Dataset.from_list(rows),
            processing_class=processor,
            tools=tools,
            **arguments,
        )

    return make


def stream(rows):
    """Rows as they are: Arrow knows no pictures in blocks."""
    return IterableDataset.from_generator(lambda: iter(copy.deepcopy(rows)))


def first_words(prompts, trainer):
    """A `rollout_func` that calls `look`."""
    prompt_ids, *_ = trainer._tokenize_prompts(prompts)
    ids = trainer._tokenizer("<look>1</look>", add_special_tokens=False)["input_ids"]
    copied = [list(ids) for _ in prompt_ids]
    return {"prompt_ids": prompt_ids, "completion_ids": copied, "logprobs": [[0.0] * len(ids) for _ in prompt_ids]}


# ---- in prompts


LOOKING = [
    {"prompt": asked("What <look> is this?"), "image": RED},
    {"prompt": asked("And <look> nothing?"), "image": None},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tool", [None, "picture", "words"])
def test_pictures_are_read_after_a_rollout_func(trainers, family, tool):
    def look(place: str):
        """
        Look.

        Args:
            place: Where.
        """
        return BLUE if tool == "picture" else "Nothing."

    options = {"tool_protocol": "tags", "max_tool_calling_iterations": 2, "max_completion_length": 64} if tool else {}
    tools = [look] if tool else None
    trainer = trainers(A2TGPOTrainer, family, LOOKING * 2, tools=tools, rollout_func=first_words, **options)
    batch = trainer._roll_out(list(trainer.train_dataset)[:4])
    assert [len(rollout.images) for rollout in batch.rollouts] == [1, 0, 1, 0]
    assert all(len(rollout.turns[0].images) == (tool == "picture") for rollout in batch.rollouts)
    trainer.train()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_grpo_is_trls_bit_for_bit(trainers, family, rows):
    trained = []
    for cls in (GRPOTrainer, A2TGPOTrainer):
        trainer = trainers(cls, family, ROWS[rows] * 4)
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        trained.append((losses, weights(trainer)))
    (losses, after), (our_losses, ours) = trained
    assert our_losses == losses and same(ours, after)
    assert not same(after, dict(tiny_vision.model(family).named_parameters()))


@pytest.mark.parametrize("peft", [None, LoraConfig(target_modules=["q_proj", "v_proj"], r=4)], ids=["full", "LoRA"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_a_checkpoint_are_read_again(trainers, tmp_path, family, peft):
    checkpoint = tmp_path / "run" / "checkpoint-2"
    options = dict(family=family, rows=ROWS["image"] * 4, peft_config=peft, save_strategy="steps", save_steps=2)
    short, whole = (trainers(A2TGPOTrainer, max_steps=steps, **options) for steps in (2, 4))
    for trainer in (short, whole):
        torch.manual_seed(0)
        trainer.train()
    rest = trainers(A2TGPOTrainer, max_steps=4, **options)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(rest), weights(whole)) and not same(weights(rest), weights(short))
    rest.state.best_model_checkpoint = str(checkpoint)
    rest._load_best_model()
    assert same(weights(rest), weights(short))


# ---- from tools


def look(key: int) -> list:
    """
    Look at something.

    Args:
        key: Where to look.
    """
    size = (8 * (1 + key % 3), 8 * (1 + key % 4))
    seen = {"type": "image", "image": picture(("red", "green", "blue")[key % 3], size)}
    said = {"type": "text", "text": f"This is {key}."}
    return [[said], [seen, said], [seen], [said, seen, seen]][key % 4]


GREEN = {"prompt": asked("Where?"), "image": picture("green", (24, 24))}
MIXED = [{"prompt": asked("What is red?"), "image": None}, *ROWS["image"], GREEN]
ENDS = [2, *range(200, 380)]
"""Many tokens end a turn, so that random models write turns of different length."""
PROMPTS = {"pictures": [*ROWS["image"], GREEN], "text": [*ROWS["text"], {"prompt": asked("Why?")}], "mixed": MIXED}


@pytest.fixture
def by_chance(trainers, monkeypatch):
    """`by_chance(cls, family, rows, **options)`: a random model calls the tool by chance, and decides greedily."""
    chance.install_parser(monkeypatch)

    def make(cls, family, rows, **options):
        options = {
            "model": tiny_vision.model(family, CALLING[family]),
            "max_completion_length": 200, "max_tool_calling_iterations": 4, "num_generations": 2,
            "per_device_train_batch_size": 2 * len(rows), "generation_kwargs": {"do_sample": False}, **options,
        }  # fmt: skip
        return trainers(cls, family, rows * 2, tools=[look], ends=ENDS, **options)

    return make


def rolled_out(trainer, rows):
    """What `_generate` returned for a batch in which each row stands twice, and what the loss reads."""
    outputs, generate = [], trainer._generate

    def keep(prompts):
        outputs.append(generate(prompts))
        return copy.deepcopy(outputs[0])

    trainer._generate = keep
    trainer.model.train()
    batch = trainer._generate_and_score_completions(copy.deepcopy([row for row in rows for _ in range(2)]))
    return outputs[0], batch


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("family", CALLING)
def test_rollouts_with_pictures_of_tools_are_trls(by_chance, family, prompts):
    rows = PROMPTS[prompts]
    theirs, batch = rolled_out(by_chance(GRPOTrainer, family, rows), rows)
    turns = [sum(a < b for a, b in pairwise([0, *mask])) for mask in theirs[2]]
    assert len(set(turns)) > 1 and any(theirs[7])
    for lockstep in (True, False):
        ours, our_batch = rolled_out(by_chance(A2TGPOTrainer, family, rows, lockstep=lockstep), rows)
        assert ours[:6] == theirs[:6]
        assert [row or [] for row in ours[6]] == [row or [] for row in theirs[6]]
        assert our_batch.keys() == batch.keys() | {"turn_ids"}
        for name, value in batch.items():
            ours_is = our_batch[name]
            assert torch.equal(ours_is, value) if isinstance(value, torch.Tensor) else ours_is == value, name


def zoom(place: str) -> list:
    """
    Look closer.

    Args:
        place: Where.
    """
    return [
        {"type": "text", "text": f"{place}: "},
        {"type": "image", "image": picture("red", (16, 8 * (1 + len(place) % 3)))},
    ]


TAGGED = [
    {"prompt": [{"role": "user", "content": f"{row['prompt'][0]['content']} <zoom>"}], "image": row["image"]}
    for row in MIXED
]


def from_scratch(trainer, rollout):
    """Logits of one forward over all tokens of a rollout and all its pictures."""
    context = [rollout.context_ids]
    inputs = (
        trainer.processing_class.image_processor(images=rollout.all_images, return_tensors="pt")
        if rollout.all_images
        else {}
    )
    types = {
        name: torch.tensor(trainer.processing_class.create_mm_token_type_ids(context))
        for name in ["mm_token_type_ids" if "image_grid_thw" in inputs else "token_type_ids"]
    }
    inputs = {name: value for name, value in inputs.items() if name != "num_crops"} | (types if inputs else {})
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=torch.tensor(context), **inputs).logits[0]
    return logits


def assert_written_greedily(trainer, rollout):
    """Each token of each turn is the one that a forward from scratch finds most likely."""
    logits = from_scratch(trainer, rollout)
    logits[:, trainer._pictures.placeholders] = -torch.inf  # they are never written
    choices = logits.argmax(dim=-1).tolist()
    start = len(rollout.prompt_ids)
    written = [start + i for i, on in enumerate(rollout.tool_mask) if on]
    assert [choices[place - 1] for place in written] == [rollout.context_ids[place] for place in written]


@pytest.mark.parametrize("family", CALLING)
def test_contexts_are_those_of_one_forward_from_scratch(by_chance, family):
    trainer = by_chance(A2TGPOTrainer, family, MIXED)
    rollouts = trainer.play(MIXED, greedy=True)
    assert max(len(rollout.all_images) for rollout in rollouts) > 2
    for rollout in rollouts:
        assert trainer._pictures.count(rollout.context_ids) == len(rollout.all_images)
        assert_written_greedily(trainer, rollout)


class Zooming(TagProtocol):
    """Reads the same call out of the first turns, which a random model does not write."""

    def read_turn(self, ids, prefix, schemas):
        message, calls = super().read_turn(ids, prefix, schemas)
        return message, calls or [ToolCall("zoom", {"place": "a" * (sum(ids) % 5)})] * (len(prefix) < 150)


@pytest.fixture
def zooming(trainers, monkeypatch):
    """`zooming(family, **options)`: a trainer whose random model calls a tool by tags."""
    monkeypatch.setattr("a2tgpo_trl.rollout.player.TagProtocol", Zooming)

    def make(family, rows=TAGGED, cls=A2TGPOTrainer, tools=(zoom,), **options):
        options = {
            "tool_protocol": "tags",
            "max_completion_length": 250,
            "max_turn_tokens": 6,
            "num_generations": 2,
            **options,
        }
        return trainers(cls, family, rows * 2, tools=list(tools), **{"per_device_train_batch_size": 8, **options})

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_tags_hold_pictures(zooming, family):
    trainer = zooming(family)
    rollouts = trainer.play(TAGGED, greedy=True)
    for rollout in rollouts:
        assert rollout.num_tool_turns
        turn = rollout.turns[0]
        (seen,) = turn.images
        placeholder = trainer._tokenizer.decode(trainer._pictures.placeholder_ids(seen))
        read = trainer._tokenizer.decode(turn.observation_ids)
        assert read == f"\n<result>{turn.calls[0].arguments['place']}: {placeholder}</result>\n"
        assert turn.observation == f"{turn.calls[0].arguments['place']}: "
        assert_written_greedily(trainer, rollout)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_tags_are_trained_on(zooming, family):
    trainer = zooming(family)
    before = weights(trainer)
    trainer.train()
    assert all(log["grad_norm"] > 0 for log in trainer.state.log_history if "grad_norm" in log)
    changed = [name for name, value in weights(trainer).items() if not torch.equal(value, before[name])]
    assert any("visual" in name or "vision" in name for name in changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_reads_the_pictures_of_tools(zooming, family):
    """Old log-probabilities are those of a forward from scratch."""
    trainer = zooming(family, num_iterations=2)
    trainer.model.eval()
    batch = trainer._roll_out([row for row in TAGGED for _ in range(2)])
    for i, rollout in enumerate(batch.rollouts):
        logits = from_scratch(trainer, rollout)
        ids = torch.tensor(rollout.context_ids)
        logps = logits[:-1].log_softmax(dim=-1).gather(1, ids[1:, None])[len(rollout.prompt_ids) - 1 :, 0]
        old = batch.tensors["old_per_token_logps"][i, : len(logps)]
        on = torch.tensor(rollout.tool_mask).bool()
        torch.testing.assert_close(old[on], logps[on], atol=1e-4, rtol=1e-4)


# ---- limits


MARKER = re.compile(r"… \[truncated: \d+ of \d+ characters left out\]$")


def protocol(family):
    return TagProtocol(tiny_vision.processor(family), [zoom])


def result(*content):
    blocks = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return {"role": "tool", "name": "zoom", "content": blocks}


@pytest.mark.parametrize("limit", range(100, 260, 13))
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_an_observation_is_never_cut_within_a_picture(family, limit):
    tags = protocol(family)
    given = [result("many words " * 20, RED, " and few", BLUE), result("more words " * 20, RED)]
    shown, ids = tags.observe(given, limit)
    kept = pictures_in(shown)
    assert tags.pictures.count(ids) == len(kept) <= 3
    of_pictures = sum(ids.count(token) for token in tags.pictures.placeholders)
    assert of_pictures == sum(tags.pictures.placeholder_ids(seen).count(tags.pictures.image_token_id) for seen in kept)
    assert len(ids) <= limit
    assert "[truncated: " in str(shown)


def test_words_stand_for_a_picture_without_room():
    shown, ids = protocol("gemma3").observe([result("Look: ", RED, " and ", BLUE)], 55)
    assert shown == [result("Look: ", RED, " and ", "[image left out]")] and len(ids) <= 55


def test_pictures_are_kept_before_texts():
    tags = protocol("qwen2_5_vl")
    given = [result("many words " * 40, RED, "and", BLUE)]
    shown, ids = tags.observe(given, 80)
    assert pictures_in(shown) == [RED, BLUE] and len(ids) <= 80
    first, *others = shown[0]["content"]
    assert MARKER.search(first["text"]) and [block["type"] for block in others] == ["image", "text", "image"]
    assert tags.observe(given, 1000)[0] == given


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_an_observation_without_room_takes_its_pictures_with_it(by_chance, family):
    rows, options = PROMPTS["pictures"], {"max_completion_length": 100}
    theirs, batch = rolled_out(by_chance(GRPOTrainer, family, rows, **options), rows)
    trainer = by_chance(A2TGPOTrainer, family, rows, lockstep=True, **options)
    ours, our_batch = rolled_out(trainer, rows)
    assert ours[:7] == theirs[:7] and torch.equal(our_batch["pixel_values"], batch["pixel_values"])
    rollouts = by_chance(A2TGPOTrainer, family, rows, lockstep=True, **options).play(rows, greedy=True)
    dropped = [rollout.turns[-1] for rollout in rollouts if rollout.stop_reason == StopReason.OVERLONG_OBSERVATION]
    assert any(pictures_in([result.message() for result in turn.results]) for turn in dropped)
    assert not any(turn.images or turn.observed for turn in dropped)


def test_a_tool_may_go_on_drawing_on_what_it_returned(zooming):
    canvas = picture("red")

    def draw(place: str):
        """
        Draw.

        Args:
            place: Where.
        """
        canvas.paste(("red", "green", "blue")[len(place) % 3], (0, 0, 16, 16))
        return canvas

    draw.__name__ = "zoom"
    for rollout in zooming("qwen3_5", tools=[draw]).play(TAGGED[:1], greedy=True):  # others would draw beside it
        assert len(rollout.turns) > 1
        for turn in rollout.turns[:-1]:
            color = ("red", "green", "blue")[len(turn.calls[0].arguments["place"]) % 3]
            assert turn.images == [Image.new("RGB", (16, 16), color)]
            assert turn.images[0] is not canvas


# ---- what else plays and trains


@pytest.mark.parametrize("estimator", ["gtpo", "mt_grpo", "gigpo"])
@pytest.mark.parametrize("family", ["qwen3_5", "gemma3"])
def test_estimators_of_turns_train(zooming, family, estimator):
    options = {} if estimator == "gigpo" else {"turn_reward_funcs": by_turn}
    trainer = zooming(family, advantage_estimator=estimator, num_generations=4, **options)
    trainer.train()
    assert all(log["grad_norm"] > 0 for log in trainer.state.log_history if "grad_norm" in log)


def by_turn(turns, **columns):
    return [[float(sum(turn.ids) % 3) for turn in rollout] for rollout in turns]


@pytest.mark.parametrize("level", ["token", "turn"])
def test_levels_of_ratios_train(zooming, level):
    trainer = zooming("qwen2_5_vl", importance_sampling_level=level, num_iterations=2, max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("family", ["qwen3_5", "gemma3"])
def test_leaves_of_trees_have_the_pictures_of_their_turns(zooming, family):
    options = dict(tree_chains=1, tree_expansions=1, num_generations=4, generation_kwargs={})
    trainer = zooming(family, **options)
    trainer.model.train()
    batch = trainer._roll_out([row for row in TAGGED[1:3] for _ in range(4)])
    forked = [rollout for rollout in batch.rollouts if rollout.num_shared_turns]
    assert forked
    for rollout in batch.rollouts:
        assert trainer._pictures.count(rollout.context_ids) == len(rollout.all_images)
    for rollout in forked:
        assert rollout.turns[0].images
    assert any(rollout.images for rollout in forked)
    trainer.train()


def test_leaves_of_trees_have_the_same_pictures_in_their_prompts():
    group = [Rollout([1], images=[RED]), Rollout([1], images=[RED.copy()])]
    _check_prompts(group, 1)
    with pytest.raises(RuntimeError, match="the prompts of a group differ"):
        _check_prompts([*group, Rollout([1], images=[BLUE])], 1)


def test_rollouts_are_played_with_their_pictures(zooming):
    rollouts = zooming("qwen3_5").play(TAGGED, num_generations=2)
    assert [rollout.images for rollout in rollouts[::2]] == [[row["image"]] if row["image"] else [] for row in TAGGED]
    for rollout in rollouts:
        assert rollout.all_images == [*rollout.images, *(seen for turn in rollout.turns for seen in turn.images)]
        assert pictures_in(rollout.completion) == rollout.all_images[len(rollout.images) :]


def test_states_with_other_pictures_are_others():
    def rollout(seen):
        turn = Turn([1], {"content": ""}, observed=[result("the same", seen)], observation_ids=[2], images=[seen])
        return Rollout([7], [turn, Turn([3], {"content": ""})])

    red, again, blue = (state_keys(rollout(seen))[1] for seen in (RED, RED.copy(), BLUE))
    assert red == again != blue


# ---- records and tables


PLACEHOLDERS = re.compile(r"<\|image_pad\|>|<image_soft_token>")


def test_records_keep_pictures_where_they_stood(zooming, tmp_path):
    trainer, played = zooming("gemma3", max_steps=1, per_device_train_batch_size=4), []
    roll_out = trainer._roll_out
    trainer._roll_out = lambda rows: played.append(roll_out(rows)) or played[-1]
    trainer.train()
    rows = read_turns(tmp_path / "run").to_pylist()
    files = [file for row in rows for file in row["thumbnails"] or ()]
    pictures = {name: Image.open(BytesIO(file)) for name, file in files}
    assert (
        len(pictures) == len(files) == 5
    )  # three of prompts, one of which the tool gives too, and two more, each once
    turns = [(rollout, turn) for rollout in played[0].rollouts for turn in rollout.turns]
    assert len(turns) == len(rows)
    for row, (rollout, turn) in zip(rows, turns, strict=True):
        for text, names, seen in (("prompt", "prompt_images", rollout.images), ("observation", "images", turn.images)):
            assert (row[text] or "").count("\ufffc") == len(seen) == len(row[names] or [])
            assert not PLACEHOLDERS.search(row[text] or "")
            for name, image in zip(row[names] or [], seen, strict=True):
                assert pictures[name].size == image.size
                difference = ImageStat.Stat(ImageChops.difference(pictures[name], image.convert("RGB")))
                assert max(difference.mean) < 16
        if turn.images:
            assert row["calls"][0]["result"] == f"{turn.calls[0].arguments['place']}: [image]"


def test_options_say_how_large_recorded_pictures_are(zooming, tmp_path):
    trainer = zooming("gemma3", num_generations=2)
    recorded = {}
    for most in (0, 8):
        trainer.args.turn_records_picture_px = most
        trainer._recorder.store.folder = tmp_path / str(most) / "turns"
        trainer.model.train()
        trainer._roll_out([TAGGED[1], TAGGED[1]])
        recorded[most] = read_turns(tmp_path / str(most)).to_pylist()
    assert all(row[name] is None for row in recorded[0] for name in ("prompt_images", "images", "thumbnails"))
    assert any("\ufffc" in row["prompt"] for row in recorded[0])
    files = [file for row in recorded[8] for _, file in row["thumbnails"] or ()]
    assert {max(Image.open(BytesIO(file)).size) for file in files} == {8}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "F", "CMYK"])
def test_a_thumbnail_is_small_whatever_the_picture_is(mode):
    noise = Image.effect_noise((900, 300), 100)
    made = Image.merge("RGBA", [noise] * 3 + [Image.new("L", noise.size)]) if mode == "RGBA" else noise.convert(mode)
    before = made.copy()
    small = Image.open(BytesIO(thumbnail(made, 256)))
    assert small.size == (256, 85) and made == before
    if mode == "RGBA":
        assert {color for _, color in small.getcolors()} == {(255, 255, 255)}  # it is transparent
    largest = thumbnail(made, 900)
    assert len(largest) <= 2**15 and Image.open(BytesIO(largest)).size[0] <= 900


@pytest.mark.parametrize("comment", ["who took it", "x" * 42_000])
@pytest.mark.parametrize("kind, mode", [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA")])
def test_a_thumbnail_has_pixels_alone(kind, mode, comment):
    exif, text, file = Image.Exif(), PngInfo(), BytesIO()
    exif[315] = "an artist"
    text.add_text("comment", comment)
    options = {"pnginfo": text} if kind == "PNG" else {"comment": comment.encode()}
    Image.new(mode, (64, 64), "red").save(file, kind, exif=exif, dpi=(72, 72), xmp=b"<x/>", **options)
    made = Image.open(file)
    small = Image.open(BytesIO(thumbnail(made, 32)))
    assert {*small.info} <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"} and not small.getexif()
    assert small.size == (32, 32) and made.info["comment"]


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_a_character_that_stands_for_a_picture_is_no_other(family):
    made = tiny_vision.processor(family)
    reader, text = PictureReader(made), "a\ufffcb"
    ids = made.tokenizer(text, add_special_tokens=False)["input_ids"]
    seen = reader.placeholder_ids(RED)
    (decoded,) = reader.decode([ids + seen + ids])
    assert decoded.count("\ufffc") == 1 and decoded.startswith("a\ufffdb") and decoded.endswith("a\ufffdb")


def test_tables_of_completions_tell_pictures_apart(zooming, tmp_path):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    options = {"log_multimodal": True, "log_unique_prompts": True, "report_to": ["trackio"], "project": "pictures"}
    rows = [{**TAGGED[1], "image": seen} for seen in (RED, BLUE)]
    zooming("gemma3", rows, log_completions=True, max_steps=1, per_device_train_batch_size=4, **options).train()
    (run,) = trackio.Api().runs("pictures")
    logs = SQLiteStorage.get_logs("pictures", run.name)
    table, *_ = (log["completions"]["_value"] for log in logs if "completions" in log)
    assert len({row["prompt"] for row in table}) == len(table) == 2
    assert all("trackio.image" in str(row["image"]) for row in table)
    (turns,) = (log["turns"]["_value"] for log in logs if "turns" in log)
    assert all(row.get("images") or not row["observation"] for row in turns) and "thumbnails" not in turns[0]
    (file,) = (tmp_path / "run").rglob("completions_*.parquet")
    cells = pq.read_table(file).to_pydict()
    assert not any("PIL" in cell for cell in cells["prompt"] + cells["completion"])
    (batch,) = read_completions(tmp_path / "run")
    assert all("\ufffc" in prompt for prompt in batch["prompt"].to_pylist())


# ---- processors


def test_a_processor_may_pad_on_either_side(trainers, monkeypatch):
    trained = []
    for side in ("left", "right"):
        made = tiny_vision.processor("gemma3")
        made.tokenizer.padding_side = side
        monkeypatch.setattr(tiny_vision, "processor", lambda family, made=made: made)
        trainer = trainers(A2TGPOTrainer, "gemma3", ROWS["image"] * 4)
        trainer.train()
        trained.append(weights(trainer))
    assert same(*trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_may_read_text_alone(trainers, family):
    trainer = trainers(A2TGPOTrainer, family, ROWS["text"] * 4)
    trainer.train()
    assert trainer.state.global_step == 2


def test_vllm_gets_the_pictures_themselves(zooming):
    turns = zooming("gemma3")._player.turns
    contexts, pictures = [[5, 6], [7]], [[RED, BLUE], []]
    assert turns._read(contexts, pictures)[0] is None and "pixel_values" in turns._read(contexts, pictures)[1]
    with replaced(turns, backend=VLLMBackend(turns.trainer)):
        assert turns._read(contexts, pictures) == ([[RED, BLUE], None], {})
        assert turns._read(contexts, [[], []]) == (None, {})


def test_a_picture_is_read_once_for_all_turns_of_a_batch(zooming, monkeypatch):
    """Its tensors are those of all pictures read together."""
    trainer = zooming("gemma3")
    turns, read = trainer._player.turns, []
    processor = trainer.processing_class.image_processor
    together = processor(images=[RED, BLUE, RED], return_tensors="pt")
    preprocess = type(processor).preprocess
    monkeypatch.setattr(
        type(processor), "preprocess", lambda *args, **options: read.append(args) or preprocess(*args, **options)
    )
    for _ in range(2):
        for pictures in ([[RED], [BLUE]], [[RED.copy(), BLUE], [RED]]):
            _, fields = turns._read([[5, 6], [7]], pictures)
    assert len(read) == 2 and torch.equal(fields["pixel_values"], together["pixel_values"])
    turns.clear()
    turns._read([[5, 6], [7]], [[RED], [BLUE]])
    assert len(read) == 4


def test_pictures_of_rollouts_that_are_over_are_forgotten(zooming):
    """Those of rollouts that wait for a tool are kept."""
    player = zooming("gemma3")._player
    read = player.turns.protocol.pictures
    rollouts = [Rollout([5], images=[shown]) for shown in (RED, BLUE, picture("green"))]
    writer = player._batches(lambda contexts, *_: ([[7]] * len(contexts), None), rollouts, None)
    for rows in ([0, 1, 2], [1]):
        writer.submit(rows, [[5]] * len(rows), [3] * len(rows), 3)
        writer.collect()
        assert {*read._known} == {digest(rollout.images) for rollout in rollouts if rollout.stop_reason is None}
        rollouts[0].stop_reason = StopReason.ANSWERED
    player.turns.clear()
    assert not read._known


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_read_one_by_one_as_together(family):
    reader = PictureReader(tiny_vision.processor(family))
    fields = reader.inputs([[5], [6, 7]], [[RED], [BLUE, RED]])
    together = reader.for_model(reader.processor.image_processor(images=[RED, BLUE, RED], return_tensors="pt"))
    assert together.keys() <= fields.keys()
    assert all(torch.equal(fields[name], together[name]) for name in together)


def test_a_model_writes_no_placeholder(trainers):
    """A random model would: with all other tokens suppressed it ends at once."""
    trainer = trainers(A2TGPOTrainer, "qwen2_5_vl", ROWS["image"] * 4)
    forbidden = trainer._pictures.placeholders
    assert len(forbidden) == 2
    allowed = {*forbidden, 2}
    options = {"generation_kwargs": {"suppress_tokens": sorted({*range(400)} - allowed)}}
    trainer = trainers(A2TGPOTrainer, "qwen2_5_vl", ROWS["image"] * 4, **options)
    for rollout in trainer.play(ROWS["image"]):
        assert rollout.completion_ids == [2]
