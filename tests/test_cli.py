"""The command line on a tiny model and the embedded questions."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import yaml

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.cli.memory import key_value_bytes
from a2tgpo_trl.cli.parser import find_recipe, recipes
from a2tgpo_trl.cli.scores import interval, summarize


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def shared(model, tmp_path, monkeypatch):
    """Options of a toy run; names are looked up in the working directory."""
    monkeypatch.chdir(tmp_path)
    options = "--use_cpu --bf16 false --report_to none --max_completion_length 40 --tools search --search_index atlas"
    return [*options.split(), "--model_name_or_path", str(model)]


TRAIN = [
    "train",
    "--dataset",
    "atlas",
    "--num_generations",
    "4",
    "--per_device_train_batch_size",
    "4",
    "--logging_steps",
    "1",
]


def test_commands_are_listed(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(command in listed for command in ("train", "eval", "retriever", "demo"))
    assert main(["--version"]) == 0


@pytest.mark.parametrize("command", ["train", "eval", "retriever"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert {"train": "Weight α ≥ 0", "eval": "Sampled answers", "retriever": "Search-R1"}[command] in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "'' is no command"),
        ("tarin", "'tarin' is no command"),
        ("train", "dataset is missing: name a file"),
        ("train --dataset atlas", "model_name_or_path is missing"),
        ("train --dataset atlas --epsilon x", "argument --epsilon: invalid float value: 'x'"),
        ("train --dataset atlas --turn_gamma 2", "turn_gamma (γ) must be in (0, 1], got 2.0"),
        ("train --dataset atlas --tools search", "search_url or search_index go together"),
        ("train --dataset nowhere.jsonl --model_name_or_path m", "nowhere.jsonl"),
        (
            "train --dataset atlas --model_name_or_path m --rewards best",
            "rewards: 'best' is none of exact_match, f1, format",
        ),
        ("train --dataset atlas --model_name_or_path m --rewards no.such", "rewards: 'no.such' cannot be imported"),
        ("train --config nowhere.yaml", "nowhere.yaml"),
        ("eval", "datasets is empty"),
        ("eval --datasets atlas x/atlas", "two sets called 'atlas'"),
        ("eval --datasets atlas --samples -1", "samples=-1 must be at least 0"),
        ("retriever --corpus nowhere.jsonl", "nowhere.jsonl"),
        ("retriever", "the following arguments are required: --corpus"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_cpu = ["--use_cpu", "--bf16", "false"] * arguments.startswith(("train ", "eval "))
    assert main([*arguments.split(), *on_cpu]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") + error.count("no command") == 1
    assert len([line for line in error.splitlines() if line.startswith("a2tgpo")]) == 1


def test_train_and_go_on(shared, tmp_path, capsys):
    assert main([*TRAIN, *shared, "--output_dir", "run", "--max_steps", "2", "--save_steps", "1"]) == 0
    assert "Trained 2 steps; the model is in run." in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").exists()
    again = [*TRAIN, *shared, "--output_dir", "run", "--max_steps", "3", "--resume_from_checkpoint", "last"]
    assert main(again) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and [log["step"] for log in state["log_history"]] == [1, 2, 3]
    assert main([*TRAIN, *shared, "--output_dir", "empty", "--resume_from_checkpoint", "last"]) == 2
    assert "no checkpoint in empty" in capsys.readouterr().err


def test_yaml_gives_options_and_the_command_line_wins(shared, tmp_path, capsys):
    (tmp_path / "my_rewards.py").write_text("def one(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    rows = [{"q": "Where?", "a": {"text": "Here"}}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        "dataset: rows.jsonl\ncolumns: {question: q, answer: a.text}\nprompt_template: 'Q: {question}'\nmax_steps: 7\n"
        "rewards: [my_rewards.one]\nnum_generations: 4\nper_device_train_batch_size: 4\noutput_dir: run\n"
    )
    assert main(["train", "--config", "run.yaml", "--max_steps", "1", "--logging_steps", "1", *shared]) == 0
    assert "Trained 1 steps" in capsys.readouterr().out
    (tmp_path / "bad.yaml").write_text("dataset: rows.jsonl\nmax_stebs: 7\n")
    assert main(["train", "--config", "bad.yaml", *shared]) == 2
    assert "max_stebs" in capsys.readouterr().err


def test_dry_run_shows_and_writes_nothing(shared, tmp_path, capsys):
    assert main([*TRAIN, *shared, "--output_dir", "run", "--turn_gamma", "0.9", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "turn_gamma: 0.9" in shown and "Question: What is" in shown and "Rollout 1 of 4" in shown
    assert "turn         gain" in shown and "weights" in shown and "keys and values while scoring" in shown
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_eval_asks_what_is_missing(shared, tmp_path, capsys, monkeypatch):
    command = ["eval", "--datasets", "atlas", "again=atlas", *shared, "--per_device_eval_batch_size", "4"]
    assert main([*command, "--limit", "3"]) == 0
    table = capsys.readouterr().out
    assert "6 of 6 questions" in table and "micro" in table and "macro" in table
    lines = (tmp_path / "eval.jsonl").read_text().splitlines()
    assert len(lines) == 7
    (tmp_path / "eval.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])  # cut off in the fifth answer
    assert main([*command, "--limit", "3"]) == 0
    assert (tmp_path / "eval.jsonl").read_text().splitlines() == lines  # greedy: the same answers again
    assert "6 of 6" in capsys.readouterr().out
    monkeypatch.setattr("a2tgpo_trl.cli.eval._build", lambda *args: pytest.fail("nothing is missing"))
    assert main([*command, "--limit", "3"]) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ("--samples 2", "other settings (samples 0, now 2, temperature None, now 1.0"),
        ("--max_completion_length 50", "other settings (max_completion_length 40, now 50)"),
        ("--search_top_k 5", "other settings (search_top_k 3, now 5)"),
        ("--prompt_template {question}", "an answer to another prompt at atlas 0"),
        ("--output notes.txt", "notes.txt holds no answers of a2tgpo eval"),
    ],
)
def test_eval_goes_on_with_the_same_settings_only(shared, tmp_path, capsys, change, message):
    (tmp_path / "notes.txt").write_text("Eggs, milk\n")
    command = ["eval", "--datasets", "atlas", "--limit", "1", *shared]
    assert main(command) == 0
    before = (tmp_path / "eval.jsonl").read_text()
    assert main([*command, *change.split()]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "eval.jsonl").read_text() == before and (tmp_path / "notes.txt").read_text() == "Eggs, milk\n"


@pytest.fixture
def adapter(tmp_path, model):
    peft = pytest.importorskip("peft")
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "init_lora_weights": False}
    adapted = peft.get_peft_model(tiny.model(), peft.LoraConfig(**options))
    adapted.peft_config["default"].base_model_name_or_path = str(model)
    adapted.save_pretrained(tmp_path / "adapter")
    tiny.tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_eval_of_samples_and_of_an_adapter(shared, tmp_path, adapter):
    shared[-1] = str(adapter)
    assert main(["eval", "--datasets", "atlas", "--limit", "2", "--samples", "3", *shared]) == 0
    answers = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()[1:]]
    assert [len(answer["completions"]) for answer in answers] == [3, 3]
    assert [answer["index"] for answer in answers] == [0, 1]


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_eval_of_a_name_on_the_hub(kind, shared, tmp_path, model, adapter, monkeypatch):
    """From the Hub's cache, laid out as huggingface_hub does; the adapter changes the answers."""
    name, commit = "models--someone--something", "0123456789012345678901234567890123456789"
    snapshot = tmp_path / "hub" / name / "snapshots" / commit
    shutil.copytree(model if kind == "model" else adapter, snapshot)
    absent = tmp_path / "hub" / name / ".no_exist" / commit
    absent.mkdir(parents=True)
    for file in {"config.json", "adapter_config.json"} - {file.name for file in snapshot.iterdir()}:
        (absent / file).touch()
    (tmp_path / "hub" / name / "refs").mkdir()
    (tmp_path / "hub" / name / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = {}
    for source in ("someone/something", str(model), str(adapter)):
        shared[-1] = source
        assert main(["eval", "--datasets", "atlas", "--limit", "3", *shared, "--output", "out.jsonl"]) == 0
        found[source] = (tmp_path / "out.jsonl").read_text().splitlines()[1:]
        (tmp_path / "out.jsonl").unlink()
    assert found["someone/something"] == found[str(model if kind == "model" else adapter)]
    assert found[str(model)] != found[str(adapter)]


def test_qlora(shared, tmp_path):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    # Rows of the weights are whole blocks of 64
    tiny.model(hidden_size=64, intermediate_size=64, head_dim=32).save_pretrained(tmp_path / "wide")
    tiny.tokenizer().save_pretrained(tmp_path / "wide")
    shared[-1] = "wide"
    quantized = ["--load_in_4bit", "--use_peft", "--lora_r", "4", "--output_dir", "run", "--max_steps", "1"]
    assert main([*TRAIN, *shared, *quantized]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    shared[-1] = "run"
    assert main(["eval", "--datasets", "atlas", "--limit", "1", "--load_in_4bit", *shared]) == 0


TOY = {  # what a recipe is run with here instead of a large model, its data and its retriever
    "num_generations": "4",
    "per_device_train_batch_size": "4",
    "gradient_accumulation_steps": "1",
    "steps_per_generation": "2",
    "max_steps": "2",
    "max_completion_length": "40",
    "dtype": "float32",
    "fp16": "false",
}


@pytest.mark.parametrize("recipe", [name for name in recipes() if not name.startswith("vllm")])
def test_recipes_train_at_toy_size(recipe, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = yaml.safe_load(Path(find_recipe(recipe)).read_text())
    folder = model
    if chosen.get("conversational"):
        folder = tmp_path / "chat"
        tiny.model().save_pretrained(folder)
        tiny.chat_tokenizer().save_pretrained(folder)
    toy = dict(TOY)
    if chosen.get("dataset") != "atlas":
        toy["dataset"] = "atlas"
    options = [word for name, value in toy.items() for word in (f"--{name}", value)]
    options += ["--use_cpu", "--bf16", "false", "--report_to", "none", "--model_name_or_path", str(folder)]
    if chosen.get("use_peft") or chosen.get("beta"):
        options += ["--use_peft", "true"]
    trainers = []
    monkeypatch.setattr(
        "a2tgpo_trl.cli.train.A2TGPOTrainer.train",
        lambda self, **kwargs: trainers.append(self) or original(self, **kwargs),
    )
    assert main(["train", "--config", recipe, *options]) == 0
    (trainer,) = trainers
    assert trainer.state.global_step == 2
    unchanged = {name: value for name, value in chosen.items() if name not in toy and hasattr(trainer.args, name)}
    unchanged = {name: value for name, value in unchanged.items() if name not in ("bf16", "output_dir", "report_to")}
    assert len(unchanged) > 5
    for name, value in unchanged.items():
        assert getattr(trainer.args, name) == value, name


original = A2TGPOTrainer.train


def test_options_of_vllm_recipes_exist():
    known = {option.name for option in dataclasses.fields(A2TGPOConfig)}
    for recipe in ("vllm-server", "vllm-colocate"):
        assert set(yaml.safe_load(Path(find_recipe(recipe)).read_text())) <= known


def test_the_papers_batch():
    """64 prompts, 16 rollouts of each, 8 updates, on 8 devices."""
    for recipe in ("paper-multihop", "paper-singlehop"):
        chosen = yaml.safe_load(Path(find_recipe(recipe)).read_text())
        micro = chosen["per_device_train_batch_size"] * 8
        assert micro * chosen["steps_per_generation"] == 64 * chosen["num_generations"] == 1024
        assert chosen["steps_per_generation"] // chosen["gradient_accumulation_steps"] == 8


@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
def test_launch_files_are_accelerates(name):
    from accelerate.commands.config.config_args import load_config_from_file

    file = resources.files("a2tgpo_trl") / "recipes" / "launch" / f"{name}.yaml"
    assert load_config_from_file(str(file)).num_processes == 8


def test_scores():
    # set a: means 1, 0; set b: mean over two samples 0.5
    answers = [
        {"dataset": "a", "exact_match": [1.0], "f1": [1.0]},
        {"dataset": "a", "exact_match": [0.0], "f1": [0.5]},
        {"dataset": "b", "exact_match": [1.0, 0.0], "f1": [1.0, 0.0]},
    ]
    a, b, micro, macro = summarize(answers).splitlines()[1:]
    assert a.startswith("a ") and "0.500 (0.000–1.000)" in a and "0.750 (0.500–1.000)" in a
    assert "0.500 (0.500–0.500)" in b and b.split()[1] == "1"
    assert "0.667" in micro and macro.split() == ["macro", "0.500", "0.625"]
    low, high = interval([0.0, 1.0] * 200)
    assert 0.44 < low < 0.46 and 0.54 < high < 0.56  # 0.5 ± 1.96 × 0.5 / 20


def test_key_value_bytes():
    # 2 × 2 layers × 2 key-value heads × head size 8 × 4 bytes
    assert key_value_bytes(tiny.model().config, 4) == 256


def test_ctrl_c_ends_with_a_checkpoint(shared, tmp_path):
    command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               "from a2tgpo_trl.cli.main import main; raise SystemExit(main())"]  # fmt: skip
    options = [*TRAIN, *shared, "--output_dir", "run", "--max_steps", "100000", "--save_strategy", "no"]
    with subprocess.Popen(
        [*command, *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "CI": "1"},
    ) as process:  # fmt: skip
        lines = iter(process.stdout.readline, "")
        next(line for line in lines if "'loss'" in line)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        rest = "".join(lines)
        assert process.wait(timeout=60) == 130
    assert "Stopping after this step" in rest and "Go on with --resume_from_checkpoint last" in rest
    assert list((tmp_path / "run").glob("checkpoint-*"))
