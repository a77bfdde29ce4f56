"""The command line on a tiny model and the embedded questions."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from trl import ModelConfig

import tiny
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli.eval import EvalArguments, open_answers
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.cli.memory import estimate, key_value_bytes
from a2tgpo_trl.cli.models import find_model
from a2tgpo_trl.cli.scores import interval, summarize
from a2tgpo_trl.integrations.plain import CONTROL


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
    assert all(word in listed for word in ("train", "eval", "retriever", "demo", "A2TGPO_TRACEBACK=1"))
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
        ("train --dataset atlas --turn_gamma 2", "turn_gamma (γ) must be in [0, 1], got 2.0"),
        ("train --dataset atlas --tools search", "search_url or search_index go together"),
        (
            "train --dataset atlas --model_name_or_path MODEL --tools finish --tool_loop trl",
            "the tool 'finish' ends a rollout, which tool_loop='trl' does not know",
        ),
        ("train --dataset nowhere.jsonl --model_name_or_path MODEL", "nowhere.jsonl"),
        (
            "train --dataset atlas --model_name_or_path nowhere",
            "model_name_or_path is 'nowhere': there is no such folder",
        ),
        ("train --dataset atlas --model_name_or_path no/such/one", "'no/such/one': there is no such folder"),
        ("train --dataset atlas --model_name_or_path .", "(it has no config.json)"),
        ("train --dataset atlas --dataset_split dev --model_name_or_path MODEL", "the split of the atlas is 'dev'"),
        (
            "train --dataset atlas --model_name_or_path MODEL --lora_r 4",
            "lora_r=4 without use_peft: add use_peft to train an adapter",
        ),
        (
            "train --dataset atlas --model_name_or_path MODEL --resume_from_checkpoint nowhere",
            "resume_from_checkpoint is 'nowhere', which is not a complete checkpoint (there is no such folder)",
        ),
        (
            "train --dataset atlas --model_name_or_path MODEL --tools search --search_url http://127.0.0.1:9/retrieve",
            "search_url: The search server http://127.0.0.1:9/retrieve cannot be reached",
        ),
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
        ("retriever --corpus x --max_queries 0", "max_queries is 0; give a number above 0"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    on_cpu = ["--use_cpu", "--bf16", "false"] * arguments.startswith(("train ", "eval "))
    assert main([*arguments.replace("MODEL", str(model)).split(), *on_cpu]) == 2
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
    assert "no complete checkpoint in empty" in capsys.readouterr().err


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


def shown_by_dry_run(capsys):
    """Title → content."""
    pieces = re.split(r"\n(\w.*)\n-+\n", capsys.readouterr().out)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_dry_run_shows_and_writes_nothing(shared, tmp_path, capsys):
    command = [*TRAIN, *shared, "--output_dir", "run", "--turn_gamma", "0.9", "--dtype", "bfloat16", "--dry_run"]
    assert main(command) == 0
    options, prompt, rollout, memory = shown_by_dry_run(capsys).values()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert "Question: What is" in prompt and "<search>query</search>" in prompt and "<answer>…</answer>" in prompt
    assert "exact_match_reward" in rollout and "| turn | advantage " in rollout and "| clip range " in rollout
    assert "weights" in memory and "keys and values while scoring" in memory
    assert memory.splitlines()[-1].startswith("at the peak, while ")
    resolved = yaml.safe_load(options)
    assert resolved["turn_gamma"] == 0.9 and resolved["dtype"] == "bfloat16" and resolved["rewards"] == ["exact_match"]
    assert (resolved["dataset"], resolved["tools"], resolved["search_index"]) == ("atlas", ["search"], ["atlas"])
    (tmp_path / "resolved.yaml").write_text(options)
    assert main(["train", "--config", "resolved.yaml", "--dry_run"]) == 0
    assert yaml.safe_load(next(iter(shown_by_dry_run(capsys).values()))) == resolved


STEERING = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r"
"""Sets the title of a terminal, clears it, turns the line around."""


def test_dry_run_prints_no_control_characters_of_the_data(shared, tmp_path, capsys):
    row = {"question": f"Where is {STEERING}?", "answer": "Here"}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 4)
    template = f"{{question}} {STEERING}"
    assert main([*TRAIN, *shared, "--dataset", "rows.jsonl", "--prompt_template", template, "--dry_run"]) == 0
    shown = shown_by_dry_run(capsys)
    assert shown["Prompt"].startswith("Where is \ufffd]0;owned\ufffd\ufffd[2J")
    assert not CONTROL.search("".join(shown.values()))


def test_errors_print_no_control_characters_of_a_server(shared, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    f"HTTP/1.1 404 {STEERING[:-1]}\r\nContent-Length: 0\r\n\r\n".encode("latin-1", "ignore")
                )

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/retrieve"
        searched = [word for word in shared if word not in ("--search_index", "atlas")]
        assert main([*TRAIN, *searched, "--search_url", url]) == 2
    error = capsys.readouterr().err
    assert "404 \ufffd]0;owned" in error and not CONTROL.search(error.replace("\r", ""))


def test_dry_run_shows_the_prompt_of_the_chat_template(shared, tmp_path, capsys):
    tiny.model().save_pretrained("chat")
    template = "{% if tools %}TOOLS {% endif %}{{ mood }}: {{ messages[0].content }}"
    tiny.tokenizer(template).save_pretrained("chat")
    shared[-1] = "chat"
    chat = ["--conversational", "--tool_protocol", "tags", "--chat_template_kwargs", '{"mood": "calm"}']
    assert main([*TRAIN, *shared, *chat, "--dry_run"]) == 0
    assert shown_by_dry_run(capsys)["Prompt"].startswith("calm: Answer the question.")


def test_the_estimate_of_memory_counts_prompts_and_the_reference(build, model):
    trainer = build(beta=0.1, model=str(model))
    few, many = (estimate(trainer, tokens) for tokens in (0, 400))
    assert many["keys and values while generating"].size == 2 * few["keys and values while generating"].size
    assert many["reference model"].size == many["weights"].size
    assert "reference model" not in estimate(build(), 0)


def test_a_run_without_flags_for_the_cpu(shared, model, tmp_path):
    options = ["--model_name_or_path", str(model), "--max_completion_length", "20", "--report_to", "none"]
    assert main([*TRAIN, *options, "--output_dir", "run", "--max_steps", "1"]) == 0
    assert main(["eval", "--datasets", "atlas", "--limit", "1", *options]) == 0


def test_a_bad_row_that_is_reached_while_training(shared, tmp_path, capsys):
    good = json.dumps({"question": "Where?", "answer": "Here"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(good * 20 + '{"question": "Where?"}\n')
    streamed = [*TRAIN, *shared, "--dataset", "rows.jsonl", "--streaming", "--max_steps", "50", "--output_dir", "run"]
    assert main(streamed) == 2
    assert "a2tgpo train: error: rows.jsonl:21 has no answer" in capsys.readouterr().err


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
        ("--answer_stop +", "other settings (answer_stop None, now '+')"),
        (
            "--answer_template {answer}+",
            "other settings (answer_template '<answer>{answer}</answer>', now '{answer}+')",
        ),
        ("--prompt_template {question}", "an answer with another prompt at atlas 0"),
        ("--dtype bfloat16", "other settings (dtype 'float32', now 'bfloat16')"),
        ("--output notes.txt", "notes.txt holds no answers of a2tgpo eval"),
        ("--output other.json", "other.json holds answers to other settings"),
    ],
)
def test_eval_goes_on_with_the_same_settings_only(shared, tmp_path, capsys, change, message):
    (tmp_path / "notes.txt").write_text("Eggs, milk\n")
    (tmp_path / "other.json").write_text('{"precious": 1}')
    command = ["eval", "--datasets", "atlas", "--limit", "1", *shared]
    assert main(command) == 0
    before = (tmp_path / "eval.jsonl").read_text()
    assert main([*command, *change.split()]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "eval.jsonl").read_text() == before and (tmp_path / "notes.txt").read_text() == "Eggs, milk\n"
    assert (tmp_path / "other.json").read_text() == '{"precious": 1}'


def test_a_run_that_failed_before_its_first_answer_is_no_hindrance(shared, tmp_path, capsys):
    command = ["eval", "--datasets", "atlas", "--limit", "1", *shared]
    assert main([*command, "--tools", "search", "json.loads"]) == 2
    assert "Tool 'loads' needs" in capsys.readouterr().err
    assert main(command) == 0
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "model.safetensors").touch(), "other settings (model_files"),
        (lambda folder: shutil.rmtree(folder), "model_name_or_path is 'copy': there is no such folder"),
    ],
)
def test_eval_of_other_weights_in_the_same_folder(shared, model, change, message, capsys, tmp_path):
    shutil.copytree(model, "copy")
    shared[-1] = "copy"
    command = ["eval", "--datasets", "atlas", "--limit", "1", *shared]
    assert main(command) == 0 == main(command)
    change(tmp_path / "copy")
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_eval_of_other_answers_to_the_same_questions(shared, tmp_path, capsys):
    command = ["eval", "--datasets", "rows.jsonl", *shared]
    for answer, status in (("Here", 0), ("There", 2)):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Where?", "answer": answer}) + "\n")
        assert main(command) == status
    assert "an answer with another answer at rows 0" in capsys.readouterr().err


@pytest.mark.parametrize("sets", [["atlas", "rows.jsonl"], ["rows.jsonl", "atlas"]])
def test_eval_of_sets_with_other_columns(sets, shared, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Where?", "answer": "Here"}) + "\n")
    assert main(["eval", "--datasets", *sets, "--limit", "1", *shared]) == 0
    assert "2 of 2 questions" in capsys.readouterr().out


def test_an_answer_that_was_cut_within_a_character_is_dropped(tmp_path):
    file, settings = tmp_path / "eval.jsonl", {"model": "m"}
    whole = json.dumps(settings) + "\n" + json.dumps({"dataset": "a", "index": 0}) + "\n"
    file.write_bytes(whole.encode() + '{"dataset": "a", "answer": "é'.encode()[:-1])
    assert open_answers(file, settings).keys() == {("a", 0)}
    assert file.read_text(encoding="utf-8") == whole


def test_paths_of_sets_may_have_a_sign_of_equality(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("split=dev").mkdir()
    Path("split=dev/a.jsonl").touch()
    places = [
        "runs/lr=1e-5/dev.jsonl",
        "split=dev/a.jsonl",
        "split=dev/*.jsonl",
        "easy=runs/lr=1/dev.jsonl",
        "other=atlas",
    ]
    assert [found[:2] for found in EvalArguments(datasets=places).sets()] == [
        ("dev", "runs/lr=1e-5/dev.jsonl"), ("a", "split=dev/a.jsonl"), ("*", "split=dev/*.jsonl"), ("easy", "runs/lr=1/dev.jsonl"), ("other", "atlas"),
    ]  # fmt: skip


def test_samples_of_another_seed(shared, capsys):
    command = ["eval", "--datasets", "atlas", "--limit", "1", *shared]
    assert (
        main([*command, "--output", "greedy.jsonl"])
        == 0
        == main([*command, "--output", "greedy.jsonl", "--seed", "1"])
    )
    assert main([*command, "--samples", "2"]) == 0
    assert main([*command, "--samples", "2", "--seed", "1"]) == 2
    assert "other settings (seed 42, now 1)" in capsys.readouterr().err


def test_eval_counts_what_is_asked_and_leaves_nothing_behind(shared, tmp_path, capsys, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name in ("one", "two"):
        assert main(["eval", "--datasets", f"{name}=atlas", "--limit", "2", *shared]) == 0
    assert capsys.readouterr().out.count("2 of 2 questions") == 2
    assert not list((tmp_path / "tmp").iterdir())


def test_eval_takes_what_train_was_told(shared, tmp_path, capsys):
    (tmp_path / "train.yaml").write_text(
        "dataset: atlas\nrewards: f1\nuse_peft: true\nlora_r: 4\nmax_steps: 9\neval_strategy: steps\nbeta: 0.1\n"
        "belief_model: reference\nreward_weights: [1, 2, 3]\n"
    )
    command = ["eval", "--datasets", "atlas", "--limit", "1", *shared, "--config"]
    assert main([*command, "train.yaml"]) == 0
    (tmp_path / "train.yaml").write_text("dataset: atlas\nlimitt: 1\n")
    assert main([*command, "train.yaml"]) == 2
    assert "--config train.yaml has unknown options: limitt" in capsys.readouterr().err


def test_code_of_the_model_is_trusted_when_asked_to(shared, model, monkeypatch):
    asked = []
    original = LlamaForCausalLM.from_pretrained
    monkeypatch.setattr(
        LlamaForCausalLM, "from_pretrained", lambda *args, **options: asked.append(options) or original(*args)
    )
    assert main(["eval", "--datasets", "atlas", "--limit", "1", *shared, "--trust_remote_code"]) == 0
    assert [options["trust_remote_code"] for options in asked] == [True]


def test_eval_of_a_whole_model_needs_no_peft(model, tmp_path):
    code = f"""
import sys
sys.modules["peft"] = None
from a2tgpo_trl.cli.main import main
options = "--datasets atlas --limit 1 --use_cpu --bf16 false --report_to none --max_completion_length 5"
raise SystemExit(main(["eval", *options.split(), "--model_name_or_path", {str(model)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def test_an_adapter_is_trained_further(shared, tmp_path, model, adapter, capsys):
    """Its base was recorded from another working directory, above the adapter."""
    shutil.copytree(model, tmp_path / "base")
    described = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": "base"}))
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    shared[-1] = str(adapter)
    train = [*TRAIN, *shared, "--output_dir", "run", "--max_steps", "1", "--learning_rate", "1e-2"]
    assert main([*train, "--use_peft"]) == 2
    assert f"{str(adapter)!r}, an adapter, which is trained further: leave out use_peft." in capsys.readouterr().err
    assert main([*train, "--rewards", "format", "f1"]) == 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, Path("run")))
    assert before.keys() == after.keys()
    assert json.loads(Path("run/adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "base")
    shared[-1] = "run"
    assert main(["eval", "--datasets", "atlas", "--limit", "1", *shared]) == 0


def test_the_trained_policy_starts_as_the_adapter(model, adapter):
    source = find_model(ModelConfig(str(adapter)), A2TGPOConfig("run", use_cpu=True, bf16=False))
    policy, merged = source.load(ModelConfig(), is_trainable=True), source.load(ModelConfig())
    assert all("lora_" in name for name, parameter in policy.named_parameters() if parameter.requires_grad)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(policy(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(merged(ids).logits, tiny.model()(ids).logits)


def test_an_adapter_without_its_base(shared, adapter, capsys):
    described = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": "gone"}))
    shared[-1] = str(adapter)
    assert main(["eval", "--datasets", "atlas", *shared]) == 2
    assert "an adapter of 'gone': there is no such folder" in capsys.readouterr().err


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
    # Resampled by set: a has the mean 0, ½ or 1, and b has one question
    assert "0.667" in micro and macro.split() == ["macro", "0.500", "(0.250–0.750)", "0.625", "(0.500–0.750)"]
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pipes end in another way")
def test_a_reader_that_has_enough():
    code = "from a2tgpo_trl.cli.main import main; raise SystemExit(main(['recipe', 'colab-t4']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
