"""Nothing that a dataset, a tool or a model says is executed, unpickled or fetched; and no code is loaded unless it is asked for."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.data import load_questions
from a2tgpo_trl.integrations.loading import load_processing_class
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.signals.process_reward_model import ProcessRewardModel
from conftest import search

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(SOURCE.rglob("*.py"))

FORBIDDEN = {
    "eval", "exec", "compile", "input", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnl",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.loads", "cloudpickle.loads",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "subprocess.getoutput", "runpy.run_path", "runpy.run_module",
    "tarfile.open", "shutil.unpack_archive", "tempfile.mktemp", "urllib.request.urlopen", "torch.hub.load", "ctypes.CDLL",
}  # fmt: skip
NEEDS = {"torch.load": ("weights_only", True)}
REFUSES = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False, "verify": False}
"""Keyword arguments with a value that no call may have."""


def dotted(node):
    """`a.b.c` of a name or an attribute; a call of anything else has no name."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner else None


def renamed(tree):
    """What imported names stand for: `from yaml import load as l` → `l: yaml.load`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dangers(code):
    """Calls in a module that could run what somebody else wrote."""
    tree = ast.parse(code)
    names, found = renamed(tree), []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = dotted(node.func) or ""
        first, _, rest = name.partition(".")
        name = ".".join(filter(None, [names.get(first, first), rest]))
        arguments = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if name in FORBIDDEN:
            found.append(f"line {node.lineno}: {name}")
        if name in NEEDS and arguments.get(NEEDS[name][0]) is not NEEDS[name][1]:
            found.append(f"line {node.lineno}: {name} without {NEEDS[name][0]}={NEEDS[name][1]}")
        found += [f"line {node.lineno}: {name}({k}={v})" for k, v in REFUSES.items() if arguments.get(k) is v]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_runs_what_others_wrote(path):
    assert dangers(path.read_text()) == []


def test_the_scan_sees_what_it_looks_for():
    code = (
        "import os, pickle, yaml, torch\nimport subprocess as s\nfrom pickle import loads as read\nfrom torch import load\n"
        "eval(x)\nos.system(x)\nread(x)\nyaml.load(x)\ns.run(x, shell=True)\ntorch.load(x)\nload(x, weights_only=False)\n"
        "m.from_pretrained(x, trust_remote_code=True)\ntorch.load(x, weights_only=True)\nyaml.safe_load(x)\nmodel.eval()\n"
    )
    assert [line.split(":")[0] for line in dangers(code)] == [f"line {n}" for n in (5, 6, 7, 8, 9, 10, 11, 11, 12)]


# ---- hostile strings from everywhere, and an ear at the interpreter

WORD = "canary7f3a"
HOSTILE = [
    f"__import__('os').system('touch {WORD}')",
    f"{{{{ cycler.__init__.__globals__.os.popen('touch {WORD}').read() }}}}{{% include '/{WORD}' %}}",
    f"!!python/object/apply:os.system ['touch {WORD}']",
    f"$(touch {WORD}) `touch {WORD}` ; touch {WORD} | touch {WORD}",
    f"cos\nsystem\n(S'touch {WORD}'\ntR.",
    f"<script>fetch('http://127.0.0.1:9/{WORD}')</script><img src=x onerror=alert('{WORD}')>",
    f"http://127.0.0.1:9/{WORD} file:///{WORD} ../../../../tmp/{WORD} \\\\host\\{WORD}",
    f"%s %(name)s {{0.__class__}} {{answer}} {WORD}\x00\x1b]0;{WORD}\x07",
]


class Ear:
    """Hears what the interpreter compiles, opens, starts, unpickles and connects to, while it listens; a hook cannot be removed."""

    def __init__(self):
        self.listens, self.heard = False, []
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if not self.listens:
            return
        if event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "subprocess.Popen",
            "pickle.find_class",
            "socket.connect",
        ) or (event in ("compile", "open", "exec", "import", "os.mkdir", "os.remove") and WORD in repr(arguments)):
            self.heard.append((event, repr(arguments)[:200]))

    def __enter__(self):
        self.listens, self.heard = True, []
        return self.heard

    def __exit__(self, *error):
        self.listens = False


@pytest.fixture(scope="module")
def ear():
    return Ear()


def test_the_ear_hears(ear, tmp_path):
    with ear as heard:
        eval(f"'{WORD}'")
        (tmp_path / WORD).write_text("")
    assert {event for event, _ in heard} >= {"compile", "open"}


def echo(text: str) -> str:
    """
    Give back a text.

    Args:
        text: What to give back.

    Returns:
        The same.
    """
    return f"{text} \ud800"


def hostile_chat():
    def call(name, arguments):
        return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call><|im_end|>'

    return [
        [call("echo", json.dumps({"text": text})), call(text, "{}"), call("echo", text), f"{text}<|im_end|>"]
        for text in HOSTILE
    ]


def hostile_tags():
    return [[f"<echo>{text}</echo>", f"<answer>{text}</answer><|im_end|>"] for text in HOSTILE]


@pytest.mark.parametrize("kind", ["chat", "tags"])
def test_hostile_strings_are_text_to_all_of_training(build, tmp_path, ear, monkeypatch, kind):
    """Prompts, answers, calls, results, rewards' columns, records and the report: all of them hold it, and nothing is run."""
    monkeypatch.chdir(tmp_path)
    everything = " ".join(HOSTILE)
    chat = kind == "chat"
    prompt = [{"role": "user", "content": everything}] if chat else everything
    row = {"prompt": prompt, "answer": [everything], "note": everything}
    trainer = build(
        hostile_chat() if chat else hostile_tags(), tools=[echo], dataset=Dataset.from_list([row] * 8),
        reward=lambda completions, note, **_: [i / 8 for i, _ in enumerate(note)],
        processing_class=tiny.chat_tokenizer() if chat else None, model=tiny.model(max_position_embeddings=4096),
        num_generations=8, per_device_train_batch_size=4, max_completion_length=2000, max_steps=1, log_completions=True,
        **({} if chat else dict(tool_tags={"echo": "echo"})),
    )  # fmt: skip
    with ear as heard:
        trainer.train()
        turns = read_turns(trainer.args.output_dir).to_pylist()
        assert main(["report", trainer.args.output_dir, "--output", "page.html"]) == 0
    assert heard == []
    assert len({turn["generation"] for turn in turns if WORD in json.dumps(turn["text"])}) == len(HOSTILE)
    assert any(WORD in json.dumps(turn["observation"]) for turn in turns)
    assert list(tmp_path.rglob(f"*{WORD}*")) == []


def test_hostile_question_files_are_text(ear, tmp_path):
    lines = [{"question": text, "golden_answers": [text]} for text in HOSTILE]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with ear as heard:
        read = load_questions(str(file))
        assert any(WORD in json.dumps(row) for row in read)
    assert heard == []


# ---- code beside a model


@pytest.fixture(scope="module")
def model_with_code(tmp_path_factory):
    """A folder whose configuration asks to run its own modules, which would leave a file behind."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny.model()
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    own = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoModelForSequenceClassification": "own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config | {"model_type": WORD, "auto_map": own}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig\n"
        f"Path({str(folder / 'ran')!r}).write_text('')\nclass OwnConfig(LlamaConfig): model_type = {WORD!r}\n"
        "class OwnTokenizer: pass\nclass OwnModel: pass\n"
    )
    return folder


def load_a_trainer(folder, config):
    A2TGPOTrainer(str(folder), lambda completions, **_: [0.0] * len(completions), config(),
                  Dataset.from_list([{"prompt": "x", "answer": ["y"]}] * 8), tools=[search])  # fmt: skip


LOADERS = {
    "a trainer": load_a_trainer,
    "its tokenizer": lambda folder, config: load_processing_class(str(folder), config(), pictures=False),
    "a process reward model": lambda folder, config: ProcessRewardModel(str(folder)),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_model_is_not_run_unless_it_is_asked_for(model_with_code, config, monkeypatch, loader):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "n")
    assert A2TGPOConfig.trust_remote_code is False
    with pytest.raises(ValueError, match="trust_remote_code"):
        LOADERS[loader](model_with_code, config)
    assert asked == []  # nobody may sit at the keyboard
    assert not (model_with_code / "ran").exists()


def test_code_of_a_model_runs_where_it_is_asked_for(model_with_code):
    """The folder would notice."""
    AutoConfig.from_pretrained(model_with_code, trust_remote_code=True)
    assert (model_with_code / "ran").exists()
    (model_with_code / "ran").unlink()


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_checkpoint_of_a_critic_is_not_unpickled(build, tmp_path):
    trainer = build(advantage_estimator="turn_ppo")
    torch.save({"head.weight": Bomb(tmp_path / "ran")}, tmp_path / "critic.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        trainer.signals["values"].load(tmp_path)
    assert not (tmp_path / "ran").exists()
