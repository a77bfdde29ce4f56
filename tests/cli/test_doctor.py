"""What `a2tgpo doctor` finds, here and where something is missing, too old or broken."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from peft import LoraConfig, get_peft_model

import tiny
from a2tgpo_trl.cli.doctor import abilities, packages
from a2tgpo_trl.cli.main import main

ROOT = Path(__file__).parents[2]
INSTALLED = ("torch", "accelerate", "datasets", "transformers", "trl", "peft")


@pytest.fixture
def doctor(capsys):
    """`doctor(*words)`: exit status and JSON of the command."""

    def run(*words):
        status = main(["doctor", "--json", *words])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(name, version, code)`: a package before all others on the path; without code its metadata alone."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def add(name, version=None, code=None, **files):
        module = name.replace("-", "_")
        if version:
            folder = tmp_path / f"{module}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            for file, text in files.items():
                (folder / f"{file}.json").write_text(text)
        if code is not None:
            (tmp_path / module).mkdir()
            (tmp_path / module / "__init__.py").write_text(code)
        packages._distributions.cache_clear()
        return tmp_path

    yield add
    packages._distributions.cache_clear()


def test_this_environment(doctor, monkeypatch):
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    status, found = doctor()
    assert (status, found["training_can_run"], found["verdict"]) == (0, True, "Training can run here.")
    assert list(found["sections"]) == ["packages", "machine", "precision", "generation", "attention", "tools", "hub"]
    rows = found["sections"]["packages"]
    assert {name: rows[name]["value"] for name in INSTALLED} == {name: version(name) for name in INSTALLED}
    assert all(rows[name]["ok"] for name in (*INSTALLED, "python", "training"))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, declared):
        if requirement.name in rows:
            assert set(rows[requirement.name]["note"].removeprefix("needs ").split(",")) == set(
                map(str, requirement.specifier)
            )
    assert rows["trl"]["note"] == "needs >=1.16,<1.17"
    free, everything = re.fullmatch(
        r"([\d.]+) of ([\d.]+) GB free", found["sections"]["machine"]["memory"]["value"]
    ).groups()
    assert float(everything) == pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.1)
    assert 0 < float(free) <= float(everything)
    assert found["sections"]["tools"]["calls"]["ok"] and not connected


def test_the_layout(capsys, doctor):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Training can run here."
    assert all(len(line) <= 100 for line in lines if " $ " not in line)
    _, found = doctor()
    assert [line for line in lines if re.match(r"\w+$", line)] == list(found["sections"])
    for section, rows in found["sections"].items():
        shown = lines[lines.index(section) + 1 :]
        shown = [line[5:] for line in shown[: shown.index("")] if re.match(r"  (ok|no|!!|  ) \S", line)]
        assert [line.startswith(f"{name} ") for line, name in zip(shown, rows, strict=True)] == [True] * len(rows)


def test_in_a_process_of_its_own_the_output_is_json_alone():
    done = subprocess.run([sys.executable, "-m", "a2tgpo_trl.cli", "doctor", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["training_can_run"] and done.stderr == ""


# ---- packages ------------------------------------------------------------------------------------------------------


def test_torch_is_too_old(install, doctor, capsys):
    install("torch", "2.4.0+cpu")
    status, found = doctor()
    assert status == 1 and list(found["sections"]) == ["packages", "machine"]
    row = found["sections"]["packages"]["torch"]
    assert row == dict(value="2.4.0+cpu", ok=False, note="needs >=2.6", mend="pip install 'torch>=2.6'", required=True)
    assert found["sections"]["packages"]["trl"] | {"ok": None} == found["sections"]["packages"]["trl"]  # not tried
    assert main(["doctor"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Training cannot run here (torch: 2.4.0+cpu, needs >=2.6). Run: pip install 'torch>=2.6'"


def test_all_that_is_wrong_is_in_the_last_line(install, doctor):
    install("torch", "2.4.0")
    install("trl", "1.17.0")
    _, found = doctor()
    assert found["verdict"].endswith("Run: pip install 'torch>=2.6' && pip install 'trl>=1.16,<1.17'")


def test_a_required_package_is_missing(doctor, monkeypatch):
    monkeypatch.setattr(packages, "REQUIRED", ("torch", "not-there-at-all"))
    status, found = doctor()
    assert status == 1 and "not-there-at-all: not installed" in found["verdict"]
    assert found["verdict"].endswith("Run: pip install 'not-there-at-all'")


def test_what_is_missing_comes_with_the_command_that_installs_it(doctor, monkeypatch):
    absent = {"not-there": "", "nor-this": "search"}
    monkeypatch.setattr(packages, "OPTIONAL", packages.OPTIONAL | absent)
    rows = doctor()[1]["sections"]["packages"]
    assert {name: rows[name]["mend"] for name in absent} == {
        "not-there": "pip install 'not-there'",
        "nor-this": "pip install 'a2tgpo-trl[search]'",
    }
    assert rows["nor-this"]["note"] == "the extra search brings it" and rows["nor-this"]["ok"] is None


def test_the_extras_of_optional_packages_bring_them():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {extra: {Requirement(line).name for line in lines} for extra, lines in extras.items()}
    of_trl = {"vllm": "vllm", "torchvision": "vision"}  # whose extras bring them
    for name, extra in packages.OPTIONAL.items():
        assert not extra or name in brought[extra] or (of_trl.get(name) == extra and "trl" in brought[extra]), name


def test_python_is_too_old(doctor, monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.10.14")
    status, found = doctor()
    assert status == 1 and "(python: 3.10.14, needs >=3.11)" in found["verdict"]


def test_an_optional_package_is_too_new(install, doctor):
    install("vllm", "0.99.0", "raise RuntimeError")
    status, found = doctor()
    row = found["sections"]["packages"]["vllm"]
    assert status == 0 and (row["value"], row["ok"]) == ("0.99.0", False)
    assert re.fullmatch(r"pip install 'vllm>=[\d.]+,<=[\d.]+'", row["mend"])
    backend = found["sections"]["generation"]["vllm colocate"]
    assert backend["ok"] is False and backend["mend"] == row["mend"] and "vllm 0.99.0, needs >=" in backend["note"]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_is_missing(doctor):
    status, found = doctor()
    assert status == 0 and found["sections"]["packages"]["vllm"]["value"] == "not installed"
    for name in ("vllm colocate", "vllm server"):
        backend = found["sections"]["generation"][name]
        assert backend["note"].startswith("vllm not installed") and backend["mend"] == "pip install 'a2tgpo-trl[vllm]'"
    assert found["sections"]["generation"]["transformers"]["ok"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_vllm_without_a_gpu():
    backend = abilities._vllm("vllm colocate", packages.Finding("vllm", "0.30.0", True), "is tried")
    assert (backend.ok, backend.mend) == (False, "") and "training is tried, which takes a GPU" in backend.note


def test_a_broken_package_is_reported(install, doctor):
    install("liger-kernel", "0.9.0", "raise OSError('libcudart.so.12: no such file')")
    status, found = doctor()
    row = found["sections"]["packages"]["liger-kernel"]
    assert status == 0 and row["ok"] is False
    assert row["note"] == "cannot be imported (OSError: libcudart.so.12: no such file)"
    assert row["mend"] == "pip install --force-reinstall 'liger-kernel==0.9.0'"


def test_a_broken_package_that_is_in_the_way_of_training(install, capsys):
    folder = install("wandb", "0.31.0", "raise SystemExit('half installed')")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "a2tgpo_trl.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["training_can_run"]
    row = found["sections"]["packages"]["training"]
    assert row["note"] == "SystemExit: half installed"
    assert row["mend"].startswith("pip install --force-reinstall 'wandb==0.31.0'   # or: pip uninstall -y wandb")
    assert found["verdict"].endswith(row["mend"])


def test_a_package_without_a_version(install, doctor):
    (install("deepspeed", "0.19.0", "") / "deepspeed-0.19.0.dist-info" / "METADATA").write_text("Name: deepspeed\n")
    assert doctor()[1]["sections"]["packages"]["deepspeed"]["value"] == "of unknown version"
    sys.modules.pop("deepspeed")


def test_a_package_of_another_distribution(install, doctor):
    folder = install("liger-kernel-nightly", "0.9.0")
    (folder / "liger_kernel_nightly-0.9.0.dist-info" / "top_level.txt").write_text("liger_kernel\n")
    install("liger-kernel", code="")
    row = doctor()[1]["sections"]["packages"]["liger-kernel"]
    assert (row["value"], row["ok"]) == ("0.9.0", True)
    sys.modules.pop("liger_kernel")


def test_a_folder_of_runs_is_no_package(install, doctor):
    (install("x", "1") / "deepspeed" / "run-1").mkdir(parents=True)
    assert doctor()[1]["sections"]["packages"]["deepspeed"]["value"] == "not installed"


def test_the_commit(install, doctor, monkeypatch, tmp_path):
    assert re.match(r"commit [0-9a-f]{12}(-dirty)? of a clone", packages._origin()) or not (ROOT / ".git").exists()
    assert packages._source() == f"-e {shlex.quote(str(ROOT))}"
    monkeypatch.setattr(packages, "CLONE", tmp_path)
    install(
        "a2tgpo-trl",
        "0.1.0",
        direct_url=json.dumps({"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}),
    )
    assert packages._origin() == "commit abababababab, installed from git"
    (tmp_path / "a2tgpo_trl-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: a2tgpo-trl\nVersion: 0.1.0\nRequires-Python: >=3.99\nRequires-Dist: torch>=99\n"
    )
    assert packages._source() == f"git+https://x@{'ab' * 20}"
    (tmp_path / "a2tgpo_trl-0.1.0.dist-info" / "direct_url.json").write_text('{"url": "file:///x", "dir_info": {}}')
    assert packages._source() == "file:///x"
    (tmp_path / "a2tgpo_trl-0.1.0.dist-info" / "direct_url.json").unlink()
    assert packages._source() == "a2tgpo-trl"
    status, found = doctor()  # without a clone, what the installed package declares
    assert status == 1 and found["sections"]["packages"]["torch"]["note"] == "needs >=99"
    assert found["sections"]["packages"]["python"]["note"] == "needs >=3.99"


# ---- the machine ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_fails(monkeypatch, doctor):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    status, found = doctor()
    row = found["sections"]["machine"]["device 0"]
    assert (
        status == 1
        and (row["value"], row["ok"]) == ("fails", False)
        and row["note"]
        and row["note"] in found["verdict"]
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_device(doctor):
    status, found = doctor()
    assert status == 0 and found["sections"]["machine"]["device 0"]["value"].startswith(torch.cuda.get_device_name(0))


def test_no_threads(doctor, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    status, found = doctor()
    assert status == 1 and found["verdict"].startswith(
        "Training cannot run here (calls: fail, can't start new thread)"
    )


def test_the_cache(doctor, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "new" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = doctor()[1]["sections"]["hub"]
    assert hub["cache"]["ok"] and hub["offline mode"]["value"] == "on" and not (tmp_path / "new").exists()
    (tmp_path / "new").write_text("a file")
    row = doctor()[1]["sections"]["hub"]["cache"]
    assert row["ok"] is False and row["note"] == "cannot be written (Not a directory)" and "HF_HOME" in row["mend"]


# ---- models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    """`save(model, tokenizer)`: a folder of both."""

    def write(model, tokenizer):
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return write


def test_a_model_whose_calls_trl_can_parse(save, doctor):
    status, found = doctor("--model", save(tiny.model(), tiny.chat_tokenizer()))
    rows = found["sections"]["model"]
    assert status == 0 and rows["family"]["value"] == "llama"
    assert rows["chat template"]["ok"] and rows["chat template"]["note"] == "TRL can parse its tool calls"
    assert rows["tool_protocol"]["note"] == "chat for chat messages, tags for plain text"
    assert rows["histories"]["value"] == "kept between turns"
    assert rows["beliefs"]["value"] == "share the forward of the old log-probabilities"


@pytest.mark.parametrize(
    ("architecture", "options", "histories", "beliefs"),
    [
        ("gemma2", {"attn_implementation": "eager"}, "sliding_attention layers", "gemma2 caps its attention scores"),
        ("gpt2", {}, "", "gpt2 has no rotary positions, and padding shifts them"),
        ("llama", {"attention_dropout": 0.1}, "", "attention_dropout is on"),
    ],
)
def test_a_model_that_shares_less(architecture, options, histories, beliefs, save, doctor):
    status, found = doctor("--model", save(tiny.model(architecture, **options), tiny.tokenizer()))
    rows = found["sections"]["model"]
    assert status == 0 and rows["chat template"]["value"] == "none"
    assert rows["tool_protocol"]["note"] == "tags for plain text"
    assert histories in rows["histories"]["note"] and rows["histories"]["ok"] is not bool(histories)
    assert rows["beliefs"]["note"] == beliefs and rows["beliefs"]["value"] == "take forwards of their own"


def test_a_template_that_trl_does_not_know(save, doctor):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    _, found = doctor("--model", save(tiny.model(), tiny.tokenizer(template)))
    rows = found["sections"]["model"]
    assert rows["chat template"]["note"] == "the chat template does not render tool calls"
    assert rows["tool_protocol"]["note"] == "tags for chat messages, tags for plain text"


def test_an_adapter(save, doctor, tmp_path):
    base = save(tiny.model(), tiny.chat_tokenizer())
    model = tiny.model()
    model.name_or_path = base
    adapter = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", base_model_name_or_path=base)
    get_peft_model(model, adapter).save_pretrained(tmp_path / "adapter")
    rows = doctor("--model", str(tmp_path / "adapter"))[1]["sections"]["model"]
    assert rows["folder"]["note"].startswith("an adapter of ") and rows["family"]["note"].endswith("of them trained")
    assert rows["beliefs"]["ok"]


def test_a_folder_that_is_no_model(doctor, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    status, found = doctor("--model", str(tmp_path))
    assert status == 1 and "folder" in found["verdict"] and found["verdict"].endswith(").")
    assert main(["doctor", "--model", "not/there"]) == 2
    assert "a2tgpo doctor: error: --model not/there: there is no such folder" in capsys.readouterr().err
