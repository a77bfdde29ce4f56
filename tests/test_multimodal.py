"""Models for pictures, trained and asked on text; which processors and pictures are refused."""

import json
from importlib.util import find_spec

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlavaProcessor,
    MambaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import tiny
import tiny_vision
from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.integrations.loading import load_processing_class
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.rollout import ChatProtocol, TagProtocol
from conftest import correct, search

TEXT = dict(
    vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, eos_token_id=2, pad_token_id=0, bos_token_id=None,
)  # fmt: skip


def gemma3(folder):
    images = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=images,
    )
    Gemma3Processor(Gemma3ImageProcessor(), tokenizer).save_pretrained(folder)
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    ids = (tokenizer.image_token_id, tokenizer.boi_token_id, tokenizer.eoi_token_id)
    indices = dict(zip(("image_token_index", "boi_token_index", "eoi_token_index"), ids, strict=True))
    config = Gemma3Config(
        text_config={**TEXT, "sliding_window": 64}, vision_config=vision, mm_tokens_per_image=4, **indices
    )
    return Gemma3ForConditionalGeneration(config)


def qwen3_5(folder):
    tiny.tokenizer().save_pretrained(folder)
    processor = {"processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    linear = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2)
    linear |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
    text = {**TEXT, "layer_types": ["linear_attention", "full_attention"], **linear, "rope_parameters": rope}
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32, patch_size=2,
        num_position_embeddings=16,
    )  # fmt: skip
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))


@pytest.fixture(params=[gemma3, qwen3_5], ids=["gemma3", "qwen3_5"])
def checkpoint(request, tmp_path, monkeypatch):
    """A folder as the Hub has them: the weights of a model for pictures, and what belongs to its processor."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    torch.manual_seed(0)
    request.param(tmp_path / "model").save_pretrained(tmp_path / "model")
    return "model"


SHARED = [
    "--use_cpu",
    "--bf16",
    "false",
    "--report_to",
    "none",
    "--max_completion_length",
    "10",
    "--tools",
    "search",
    "--search_index",
    "atlas",
]


def test_the_command_trains_and_asks_on_text(checkpoint, tmp_path, capsys):
    (tmp_path / "lengths.py").write_text(
        "def of(completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    train = (
        "train --dataset atlas --num_generations 4 --per_device_train_batch_size 4 --max_steps 2 --rewards lengths.of"
    )
    train = [
        *train.split(),
        *SHARED,
        "--output_dir",
        "run",
        "--logging_steps",
        "1",
        "--model_name_or_path",
        checkpoint,
    ]
    assert main([*train, "--dry_run"]) == 0, capsys.readouterr().err
    assert main(train) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert all(log["grad_norm"] > 0 for log in state["log_history"] if "grad_norm" in log)
    for model in (checkpoint, "run"):
        words = ["eval", "--datasets", "atlas", "--limit", "1", "--output", f"{model}.jsonl", *SHARED]
        assert main([*words, "--model_name_or_path", model]) == 0, capsys.readouterr().err


def test_the_trainer_takes_the_tokenizer(checkpoint, config, rows):
    trainer = A2TGPOTrainer(
        checkpoint, correct, config(max_completion_length=8), Dataset.from_list(rows), tools=[search]
    )
    assert isinstance(trainer.processing_class, PreTrainedTokenizerBase)
    trainer.train()
    assert trainer.state.global_step == 2


def test_trls_loop_does_not_know_their_context(checkpoint, config):
    row = {"prompt": [{"role": "user", "content": "Where is Lyon?"}], "answer": ["France"]}
    with pytest.raises(
        ValueError, match=r"cannot play (gemma3|qwen3_5): .* and (Gemma3|Qwen3_5)Config itself has none"
    ):
        A2TGPOTrainer(
            checkpoint, correct, config(tool_loop="trl"), Dataset.from_list([row] * 4),
            processing_class=tiny.chat_tokenizer(), tools=[search],
        )  # fmt: skip


def test_trls_loop_needs_a_context(config):
    """A model without attention has no length of context at all."""
    row = {"prompt": [{"role": "user", "content": "Where is Lyon?"}], "answer": ["France"]}
    torch.manual_seed(0)
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1))
    with pytest.raises(
        ValueError, match=r"cannot play mamba: TRL reads max_position_embeddings .* and MambaConfig itself"
    ):
        A2TGPOTrainer(
            mamba, correct, config(tool_loop="trl"), Dataset.from_list([row] * 4),
            processing_class=tiny.chat_tokenizer(), tools=[search],
        )  # fmt: skip


def test_a_processor_of_another_family_is_refused(config, rows):
    processor = LlavaProcessor(CLIPImageProcessorPil(), tiny.chat_tokenizer())
    with pytest.raises(
        TypeError, match=r"Qwen3VLProcessor, Gemma3Processor, and LlavaProcessor is another.*leave process"
    ):
        A2TGPOTrainer(tiny.model(), correct, config(), Dataset.from_list(rows), processing_class=processor)


def test_crops_of_pictures_are_refused(config, rows):
    processor = tiny_vision.processor("gemma3")
    processor.image_processor.do_pan_and_scan = True
    with pytest.raises(ValueError, match=r"do_pan_and_scan=True.*do_pan_and_scan = False"):
        A2TGPOTrainer(
            tiny_vision.model("gemma3"), correct, config(), Dataset.from_list(rows), processing_class=processor
        )


@pytest.mark.parametrize("form", ["column", "block", "text"])
def test_the_processor_is_loaded_where_there_are_pictures(config, tmp_path, form):
    tiny_vision.model("gemma3").save_pretrained(tmp_path)
    tiny_vision.processor("gemma3").save_pretrained(tmp_path)
    asked = "?" if form != "block" else [{"type": "image"}, {"type": "text", "text": "?"}]
    pictures = {} if form == "text" else {"images": [tiny_vision.picture("red")]}
    row = {"prompt": [{"role": "user", "content": asked}], "answer": "Paris", **pictures}
    options = config(max_completion_length=8, advantage_estimator="grpo")
    trainer = A2TGPOTrainer(
        str(tmp_path), lambda completions, **_: [1.0, 2.0] * 2, options, Dataset.from_list([row] * 4)
    )
    assert isinstance(trainer.processing_class, ProcessorMixin if pictures else PreTrainedTokenizerBase)
    assert trainer._tokenizer.padding_side == "left"
    trainer.train()


def test_a_critic_reads_no_pictures(config):
    row = {"prompt": [{"role": "user", "content": "?"}], "image": tiny_vision.picture("red")}
    with pytest.raises(ValueError, match=r"'turn_ppo' trains a critic, which reads tokens and no pictures"):
        A2TGPOTrainer(
            tiny_vision.model("gemma3"), correct, config(advantage_estimator="turn_ppo"), Dataset.from_list([row] * 4),
            processing_class=tiny_vision.processor("gemma3"),
        )  # fmt: skip


def test_pictures_have_no_place_in_plain_text(config):
    rows = [{"prompt": "?", "image": tiny_vision.picture("red")}] * 4
    with pytest.raises(ValueError, match=r"'image', and its prompts are plain text.*give prompts as messages"):
        A2TGPOTrainer(
            tiny_vision.model("gemma3"), correct, config(advantage_estimator="grpo"), Dataset.from_list(rows),
            processing_class=tiny_vision.processor("gemma3"),
        )  # fmt: skip


def test_what_is_no_picture_is_refused(config):
    content = [{"type": "image", "image": tiny_vision.picture("red")}, {"type": "text", "text": "?"}]
    rows = [{"prompt": [{"role": "user", "content": content}]}] * 4  # Arrow makes a file of the picture
    with pytest.raises(TypeError, match=r"first row of train_dataset has a picture of type dict.*datasets.Image\(\)"):
        A2TGPOTrainer(
            tiny_vision.model("gemma3"), correct, config(advantage_estimator="grpo"), Dataset.from_list(rows),
            processing_class=tiny_vision.processor("gemma3"),
        )  # fmt: skip


@pytest.mark.parametrize("key", ["url", "path", "base64"])
@pytest.mark.parametrize("first", [True, False], ids=["first row", "later row"])
def test_no_picture_is_fetched_or_opened(config, key, first):
    block, plain = {"type": "image", key: "http://127.0.0.1:9/a.png"}, {"type": "image"}
    rows = [
        {"prompt": [{"role": "user", "content": [one, {"type": "text", "text": "?"}]}],
         "images": [tiny_vision.picture("red")], "answer": "red"}
        for one in ([block] * 4 if first else [plain, *[block] * 3])
    ]  # fmt: skip
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match=rf"a picture with the key '{key}'.*nothing is fetched.*column 'images'"):
        A2TGPOTrainer(
            tiny_vision.model("gemma3"), correct, config(advantage_estimator="grpo", max_completion_length=8, max_steps=4), stream,
            processing_class=tiny_vision.processor("gemma3"),
        ).train()  # fmt: skip


def test_a_tool_without_a_processor_returns_no_picture():
    message = {"role": "tool", "name": "crop", "content": [{"type": "image", "image": tiny_vision.picture("red")}]}
    for protocol in (
        TagProtocol(tiny.tokenizer(), [search]),
        ChatProtocol(tiny.chat_tokenizer(), lambda messages: []),
    ):
        with pytest.raises(TypeError, match=r"tool 'crop' returned a picture, and processing_class is a tokenizer"):
            protocol.observe([message])


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset"])
def test_columns_of_pictures_are_refused_by_name(build, rows, column, where):
    pictured = Dataset.from_list([{**row, column: None} for row in rows])
    options = {"dataset": pictured} if where == "train_dataset" else {"eval_dataset": pictured}
    with pytest.raises(TypeError, match=rf"{where} has the column '{column}'.*remove_columns\('{column}'\)"):
        build(**options)
    build(dataset=pictured.remove_columns(column))


@pytest.mark.parametrize("kind", ["image", "image_url", "video", "audio"])
def test_blocks_that_are_no_text_are_refused(build, kind):
    content = [{"type": "text", "text": "What is this?"}, {"type": kind, "text": None}]
    row = {"prompt": [{"role": "user", "content": content}], "answer": ["Paris"]}
    error, what = (TypeError, "picture in its prompt") if kind == "image" else (ValueError, f"block of type '{kind}'")
    with pytest.raises(error, match=f"first row of train_dataset has a {what}"):
        build(dataset=Dataset.from_list([row] * 4), processing_class=tiny.chat_tokenizer())


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": []},
        {"role": "user", "content": ["Where?"]},
        {"role": "user", "content": "?"},
    ],
    ids=["no content", "a list of texts", "a text"],
)
def test_messages_of_a_stream_may_have_any_form_of_text(build, message):
    row = {"prompt": [message, {"role": "user", "content": "Where is Lyon?"}], "answer": ["France"]}
    stream = IterableDataset.from_generator(lambda: iter([row] * 4))
    assert build(dataset=stream, processing_class=tiny.chat_tokenizer()).train_dataset is stream


GREY = [{"type": "image", "text": None}, {"type": "text", "text": "What is this?"}]


@pytest.fixture
def pictured(tmp_path, monkeypatch):
    """A folder with a model for pictures that calls a tool, or answers, in a token; and questions about pictures."""
    monkeypatch.chdir(tmp_path)
    processor = tiny_vision.processor("gemma3")
    words = ["<zoom>here</zoom>", "<answer>red</answer>"]
    processor.tokenizer.add_tokens(words)
    tiny_vision.model("gemma3").save_pretrained("vision")
    processor.save_pretrained("vision")
    others = {*range(400)} - {*processor.tokenizer.convert_tokens_to_ids(words)}
    options = {"generation_kwargs": {"suppress_tokens": sorted(others)}, "max_turn_tokens": 1, "search_top_k": 1}
    (tmp_path / "words.yaml").write_text(json.dumps(options))
    (tmp_path / "eyes.py").write_text(
        "from PIL import Image\n\n\ndef zoom(place: str) -> Image.Image:\n"
        '    """\n    Look closer.\n\n    Args:\n        place: Where.\n    """\n    return Image.new("RGB", (8, 8), "blue")\n\n\n'
        "def turns(turns, **_):\n    return [float(len(rollout)) for rollout in turns]\n"
    )
    (tmp_path / "data").mkdir()
    rows = []
    for name in ("red", "green"):
        tiny_vision.picture(name).save(tmp_path / "data" / f"{name}.png")
        rows.append({"question": "What is this?", "answer": name, "image": f"{name}.png"})
    (tmp_path / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


LOOKING = [
    *(
        "--model_name_or_path",
        "vision",
        "--config",
        "words.yaml",
        "--use_cpu",
        "--bf16",
        "false",
        "--report_to",
        "none",
    ),
    *(
        "--tools",
        "eyes.py:zoom",
        "--tool_protocol",
        "tags",
        "--prompt_template",
        "{question}",
        "--max_completion_length",
        "100",
    ),
]


def test_the_command_trains_on_pictures_in_files(pictured, capsys):
    training = [
        *("train", "--dataset", "data/rows.jsonl", "--num_generations", "4", "--per_device_train_batch_size", "4"),
        *("--max_steps", "1", "--steps_per_generation", "1", "--rewards", "eyes.py:turns", "--output_dir", "run"),
        *("--advantage_estimator", "grpo", "--dataloader_pin_memory", "false"),
    ]
    assert main([*training, *LOOKING, "--conversational", "--dry_run"]) == 0
    assert "<start_of_image>[image]<end_of_image>" in capsys.readouterr().out
    assert main([*training, *LOOKING, "--conversational"]) == 0
    turns = read_turns("run").to_pylist()
    assert all(row["prompt_images"] for row in turns) and any(row["images"] for row in turns)
    assert main(["report", "run", "--output", "page.html"]) == 0
    assert 'id="data-pictures-0"' in (pictured / "page.html").read_text()


def test_the_command_asks_about_pictures_in_files(pictured, capsys):
    asking = ["eval", "--datasets", "data/rows.jsonl", "--samples", "4", "--output", "asked.jsonl", *LOOKING]
    asking.append("--conversational")
    assert main(asking) == 0, capsys.readouterr().err
    _, *answers = map(json.loads, (pictured / "asked.jsonl").read_text().splitlines())
    assert [answer["prompt"] for answer in answers] == [[{"role": "user", "content": GREY}]] * 2
    assert "8x8 pixels, " in json.dumps(answers)  # a tool's picture in a completion
    assert main(asking) == 0
    tiny_vision.picture("blue").save(pictured / "data" / "red.png")
    assert main(asking) == 2
    assert "an answer with another images at rows 0" in capsys.readouterr().err


@pytest.mark.parametrize("order", [("data/rows.jsonl", "text.jsonl"), ("text.jsonl", "data/rows.jsonl")])
def test_sets_with_pictures_and_without_are_asked_together(pictured, capsys, order):
    (pictured / "text.jsonl").write_text(json.dumps({"question": "What is red?", "answer": "red"}) + "\n")
    asking = ["eval", "--datasets", *order, "--output", "asked.jsonl", "--per_device_eval_batch_size", "4", *LOOKING]
    assert main([*asking, "--conversational"]) == 0, capsys.readouterr().err
    _, *answers = map(json.loads, (pictured / "asked.jsonl").read_text().splitlines())
    assert sorted("images" in answer for answer in answers) == [False, True, True]


def test_a_model_of_text_is_not_asked_about_pictures(pictured, capsys):
    tiny.model().save_pretrained("text")
    tiny.chat_tokenizer().save_pretrained("text")
    asking = ["eval", "--datasets", "data/rows.jsonl", "--output", "asked.jsonl", *LOOKING, "--conversational"]
    assert main([*asking, "--model_name_or_path", "text"]) == 2
    assert "'text', a model without a processor, and there are pictures" in capsys.readouterr().err


@pytest.mark.parametrize("pictures", [False, True])
def test_tools_alone_return_pictures(pictured, pictures):
    (pictured / "rows.jsonl").write_text(json.dumps({"question": "What is this?", "answer": "red"}) + "\n")
    asking = ["eval", "--datasets", "rows.jsonl", "--samples", "8", "--output", "asked.jsonl", *LOOKING]
    if pictures:
        assert main([*asking, "--pictures"]) == 0
    else:
        with pytest.raises(TypeError, match="the command --pictures"):
            main(asking)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_torchvision_is_named_where_it_is_missing(tmp_path, config):
    tiny_vision.processor("qwen3_vl").save_pretrained(tmp_path)
    with pytest.raises(
        ImportError, match=r"cannot be loaded \(.*need torchvision.*pip install 'a2tgpo-trl\[vision\]'"
    ):
        load_processing_class(str(tmp_path), config(), pictures=True)


def test_other_errors_of_a_processor_stay_themselves(tmp_path, config, capsys):
    """A name with a typo; a folder without its files; one whose file is broken."""
    for name in ("nobody/typo", "nobody/torchvision-video-processor"):
        with pytest.raises(OSError, match="couldn't connect to") as raised:
            load_processing_class(name, config(), pictures=True)
        assert "a2tgpo-trl[vision]" not in str(raised.value)
    tiny_vision.processor("gemma3").save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(OSError, match="not a valid JSON file"):
        load_processing_class(str(tmp_path), config(), pictures=True)
