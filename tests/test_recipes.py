"""Recipes, as they are, at toy size; paper-* on data in their layouts, with a retriever behind a real port."""

import json
import re
from functools import partial
from importlib import import_module, resources
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from transformers import Qwen2Config, Qwen3Config
from trl import GRPOConfig, ModelConfig

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.cli.memory import LOGITS_TILE, _activation_bytes, key_value_bytes
from a2tgpo_trl.cli.parser import find_recipe, parse, recipes
from a2tgpo_trl.cli.train import TrainArguments
from a2tgpo_trl.credit import ESTIMATORS, options_read
from a2tgpo_trl.search import BM25Search
from a2tgpo_trl.search.server import make_app
from conftest import needed_by
from serving import serving

COMPLETE = ("demo", "text-to-sql", "colab-t4", "paper-multihop", "paper-singlehop")
METHODS = {  # the recipes are A²TGPO's themselves
    name: f"baselines/{name}" if name in ("grpo", "igpo") else f"methods/{name}"
    for name in ESTIMATORS
    if name != "a2tgpo"
}
TOY = {  # what a recipe is run with here instead of a large model, and at its size
    "num_generations": "4",
    "per_device_train_batch_size": "4",
    "gradient_accumulation_steps": "1",
    "steps_per_generation": "2",
    "max_steps": "2",
    "max_completion_length": "200",
    "fp16": "false",
    "bf16": "false",
    "use_cpu": "true",
    "report_to": "none",
    "logging_steps": "1",
}
ROWS = [
    {
        "id": f"train_{i}",
        "question": question,
        "golden_answers": [answer],
        "data_source": "nq",
        "prompt": [{"role": "user", "content": f"Write <search> query </search>. Question: {question}"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": [answer]}},
        "extra_info": {"index": i, "split": "train"},
    }
    for i, (question, answer) in enumerate([("Where is Lyon?", "France"), ("Where is Bern?", "Switzerland")] * 2)
]


def text_of(recipe):
    return Path(find_recipe(recipe)).read_text(encoding="utf-8")


def options_of(recipe):
    return yaml.safe_load(text_of(recipe))


def flags(options):
    return [word for name, value in options.items() for word in (f"--{name}", value)]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The folder of a tiny model for chat calls; the working directory is its parent."""
    monkeypatch.chdir(tmp_path)
    tiny.model().save_pretrained("model")
    tiny.chat_tokenizer().save_pretrained("model")
    return "model"


@pytest.fixture
def adapter(model):
    """The folder of an adapter of a tiny model for tags, as the demo's warm start is one."""
    peft = pytest.importorskip("peft")
    tiny.tokenizer().save_pretrained(model)
    adapted = peft.get_peft_model(tiny.model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    adapted.peft_config["default"].base_model_name_or_path = str(Path(model).resolve())
    adapted.save_pretrained("warm-start")
    return "warm-start"


@pytest.fixture
def train(monkeypatch):
    """`train(*words)`: the trainer of `a2tgpo train`, after it has trained."""
    trainers = []
    original = A2TGPOTrainer.train
    monkeypatch.setattr(
        A2TGPOTrainer, "train", lambda self, **kwargs: trainers.append(self) or original(self, **kwargs)
    )

    def run(*words):
        assert main(["train", *words]) == 0
        (trainer,) = trainers
        assert trainer.state.global_step == 2
        return trainer

    return run


def assert_kept(recipe, trainer):
    """All options of a recipe that the trainer has, but those that were given for its size."""
    kept = {name: value for name, value in options_of(recipe).items() if name not in TOY}
    kept = {name: value for name, value in kept.items() if hasattr(trainer.args, name)}
    assert len(kept) > 5
    for name, value in kept.items():
        assert getattr(trainer.args, name) == value, name


def test_all_recipes_are_here():
    assert {*COMPLETE, *METHODS.values(), "raw-gains", "vllm-colocate", "vllm-server"} == set(recipes())


@pytest.mark.parametrize("method", [None, *METHODS.values()])
def test_the_demo_and_every_method_train_its_adapter_further(method, adapter, train):
    recipe = ["--config", "demo"] + ["--config", method] * bool(method)
    trainer = train(*recipe, *flags(TOY), "--model_name_or_path", adapter)
    assert_kept(method or "demo", trainer)
    columns = {f"{column}/mean" for column in trainer.estimator.columns} - {"normalized_gain/mean"}
    assert columns <= trainer.state.log_history[0].keys()
    rewarded = "turn_rewards/format_penalty/mean" in trainer.state.log_history[0]
    assert rewarded == (method in ("methods/gtpo", "methods/mt_grpo"))
    assert trainer.train_dataset[0]["prompt"].startswith("Question: What")
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert trainer.num_generations == 4


@pytest.mark.parametrize("recipe", COMPLETE)
def test_the_grpo_baseline_is_trls_whatever_the_recipe(recipe):
    words = [
        "--config",
        recipe,
        "--config",
        "baselines/grpo",
        "--model_name_or_path",
        "m",
        "--use_cpu",
        "--bf16",
        "false",
    ]
    _, config, _ = parse("train", "", (TrainArguments, A2TGPOConfig, ModelConfig), [*words, "--fp16", "false"])
    theirs = GRPOConfig("unused", use_cpu=True, bf16=False)
    for name in ("importance_sampling_level", "epsilon", "loss_type", "beta", "scale_rewards", "delta"):
        assert getattr(config, name) == getattr(theirs, name), name
    assert config.epsilon_high == theirs.epsilon  # where TRL has none, it is epsilon
    assert config.skip_empty_updates is False


@pytest.mark.parametrize("recipe", COMPLETE)
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"grpo", "igpo"}))
def test_a_method_is_itself_whatever_the_recipe(method, recipe):
    """All options that the method reads, or that its ratio goes with, are the ones it has alone, with its recipe's own."""

    def config(*recipes):
        words = [word for name in recipes for word in ("--config", name)]
        words += ["--dataset", "atlas", "--model_name_or_path", "m", "--use_cpu", "--bf16", "false", "--fp16", "false"]
        return parse("train", "", (TrainArguments, A2TGPOConfig, ModelConfig), words)[1]

    alone, added = config(METHODS[method]), config(recipe, METHODS[method])
    names = {*options_read(ESTIMATORS[method]), "importance_sampling_level", "loss_type", "skip_empty_updates"}
    names |= {"epsilon", "epsilon_high"} if alone.importance_sampling_level in ("token", "turn_product") else set()
    assert {name: getattr(added, name) for name in names} == {name: getattr(alone, name) for name in names}
    if method != "returns":  # whose recipe shows another choice than its defaults
        default = A2TGPOConfig("unused", advantage_estimator=method, use_cpu=True, bf16=False, **needed_by(method))
        assert {name: getattr(alone, name) for name in names} == {name: getattr(default, name) for name in names}


class Options(Exception):
    """Those that something was called with."""


def test_the_demo_recipe_has_the_demos_settings(monkeypatch, tmp_path):
    demo = pytest.importorskip("a2tgpo_trl.demo.training")
    batches = import_module("a2tgpo_trl.demo.run").DemoSettings().rollout_batches

    def make_config(**options):
        raise Options(options)

    monkeypatch.setattr(demo, "A2TGPOConfig", make_config)
    with pytest.raises(Options) as made:
        demo.make_trainer(tmp_path, tmp_path, None, tmp_path, batches, seed=0)
    (options,), chosen = made.value.args, options_of("demo")
    shared = (options.keys() & chosen.keys()) - {"output_dir"}
    assert len(shared) > 10
    assert {name: chosen[name] for name in shared} == {name: options[name] for name in shared}
    assert chosen["prompt_template"] == demo.PROMPT_TEMPLATE


def test_text_to_sql_trains_on_what_is_prepared(tmp_path, train, monkeypatch, capsys):
    """Its model after a warm start of two steps, whose turns are scripted: a wrong draft, another one, and the answer."""
    monkeypatch.chdir(tmp_path)
    policy = import_module("a2tgpo_trl.demo.text_to_sql.policy")
    prepare, task = (import_module(f"a2tgpo_trl.demo.text_to_sql.{name}") for name in ("__main__", "task"))
    monkeypatch.setattr(prepare, "warm_up", partial(policy.warm_up, settings=policy.WarmStart(steps=2, traces=2)))
    prepare.main()
    assert "a2tgpo train --config text-to-sql" in capsys.readouterr().out
    first, *_ = map(json.loads, (task.FOLDER / "train.jsonl").read_text(encoding="utf-8").splitlines())
    (task.FOLDER / "train.jsonl").write_text((json.dumps(first) + "\n") * 4, encoding="utf-8")
    right = f"<answer>{first['answer']}</answer>"
    turns = [
        ["<query>SELECT missing FROM city</query>", f"<query>{first['answer']}</query>", right],
        [f"<query>{first['answer']}</query>", right],
        [right],
        ["<answer>SELECT 1</answer>"],
    ]
    tiny.Script(turns * 50).install(monkeypatch)
    held_out = options_of("text-to-sql")["per_device_eval_batch_size"]
    trainer = train("--config", "text-to-sql", *flags(TOY))
    assert_kept("text-to-sql", trainer)
    before, log, *_ = trainer.state.log_history
    assert len(trainer.eval_dataset) == held_out == prepare.HELD_OUT and "eval_rewards/execution_match/mean" in before
    assert log["rewards/execution_match/mean"] == 0.75
    rewards = [log[f"turn_rewards/query_reward/turn_{k}"] for k in range(2)]
    assert rewards == [pytest.approx((1 - 0.1) / 2), 1.0] and "belief/first" not in log


def test_colab_t4_asks_for_the_form_that_it_rewards(model, train):
    pytest.importorskip("peft")
    trainer = train("--config", "colab-t4", *flags({**TOY, "dtype": "float32", "model_name_or_path": model}))
    assert_kept("colab-t4", trainer)
    (message,) = trainer.train_dataset[0]["prompt"]
    assert "tool search" in message["content"] and "<answer>…</answer>" in message["content"]


class Recorded:
    """A retriever that keeps the queries that it got."""

    top_k = 3

    def __init__(self, search):
        self.search, self.queries = search, []

    def retrieve(self, queries, top_k=None):
        self.queries += queries
        return self.search.retrieve(queries, top_k)


@pytest.mark.parametrize("recipe", ["paper-multihop", "paper-singlehop"])
def test_papers_recipes_search_by_chat_calls(recipe, model, train, monkeypatch):
    data = Path(options_of(recipe)["dataset"])
    data.parent.mkdir(parents=True)
    if data.suffix == ".parquet":  # Search-R1's layout
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), data)
    else:  # FlashRAG's
        names = ("id", "question", "golden_answers")
        data.write_text("".join(json.dumps({name: row[name] for name in names}) + "\n" for row in ROWS))
    turns = [
        'I look it up.\n<tool_call>\n{"name": "search", "arguments": {"query": "Lyon"}}\n</tool_call><|im_end|>',
        "<answer>France</answer><|im_end|>",
    ]
    tiny.Script([turns] * 8).install(monkeypatch)
    retriever = Recorded(BM25Search([{"title": "Lyon", "text": "Lyon is in France."}, "Bern is in Switzerland."]))
    with serving(make_app(retriever)) as port:
        url = f"http://127.0.0.1:{port}/retrieve"
        trainer = train("--config", recipe, *flags({**TOY, "model_name_or_path": model, "search_url": url}))
    assert "Lyon" in retriever.queries
    assert_kept(recipe, trainer)
    (message,) = trainer.train_dataset[0]["prompt"]
    assert "<answer>…</answer>" in message["content"] and message["content"].rstrip().endswith(
        "Question: Where is Lyon?"
    )
    assert "<search>" not in message["content"]
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    log = trainer.state.log_history[0]
    assert log["rewards/exact_match_reward/mean"] == 0.5 and log["turns/tool_mean"] == 1


@pytest.mark.parametrize(
    ("recipe", "registered", "cell"),
    [("raw-gains", "grid", "a2tgpo_raw"), ("methods/belief_bonus", "noise", "belief_of_rollouts")],
)
def test_what_was_measured_is_what_the_recipe_sets(recipe, registered, cell):
    text = (Path(__file__).parents[1] / "benchmarks/learning" / f"{registered}.yaml").read_text(encoding="utf-8")
    measured, told = yaml.safe_load(text)["cells"][cell], options_of(recipe)
    estimator = told["advantage_estimator"]
    control = (
        {} if measured["method"] == estimator else ESTIMATORS[estimator].defaults
    )  # it became a method of its own
    assert (control | measured["options"]).items() <= told.items()


def test_raw_gains_go_on_top_of_a_recipe():
    words = ["--config", "demo", "--config", "raw-gains", "--model_name_or_path", "m", "--use_cpu"]
    _, config, _ = parse("train", "", (TrainArguments, A2TGPOConfig, ModelConfig), words)
    for name, value in options_of("raw-gains").items():
        assert getattr(config, name) == value


@pytest.mark.parametrize("option", ["vllm-server", "vllm-colocate"])
@pytest.mark.parametrize("recipe", COMPLETE)
def test_vllm_is_added_to_a_recipe(recipe, option):
    words = ["--config", recipe, "--config", option, "--model_name_or_path", "m", "--use_cpu", "--bf16", "false"]
    arguments, config, _ = parse("train", "", (TrainArguments, A2TGPOConfig, ModelConfig), [*words, "--fp16", "false"])
    for name, value in options_of(option).items():
        assert getattr(config, name) == value
    assert arguments.prompt_template == options_of(recipe)["prompt_template"]
    assert config.num_generations == options_of(recipe)["num_generations"]


def test_the_vllm_server_is_where_it_is_looked_for():
    """And not at the retriever's port."""
    port = re.search(r"trl vllm-serve .*--port (\d+)", text_of("vllm-server"))[1]
    assert options_of("vllm-server")["vllm_server_base_url"].endswith(f":{port}")
    assert not options_of("paper-multihop")["search_url"].endswith(f":{port}/retrieve")


@pytest.mark.parametrize("recipe", ["paper-multihop", "paper-singlehop"])
def test_the_papers_batch(recipe):
    """64 prompts, 16 rollouts of each, 8 updates, on 8 devices."""
    chosen = options_of(recipe)
    micro = chosen["per_device_train_batch_size"] * 8
    assert micro * chosen["steps_per_generation"] == 64 * chosen["num_generations"] == 1024
    assert chosen["steps_per_generation"] // chosen["gradient_accumulation_steps"] == 8


QWEN25 = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
)
QWEN25_LARGER = Qwen2Config(
    hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2
)
QWEN3 = Qwen3Config(
    hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_key_value_heads=8, head_dim=128
)


@pytest.mark.parametrize(
    ("recipe", "model", "column", "width", "prompt"),
    [
        ("colab-t4", QWEN25, 0, 2, 250),
        ("colab-t4", QWEN25_LARGER, 1, 2, 250),
        ("paper-multihop", QWEN3, 0, 4, 300),
    ],
)
def test_memory_is_what_the_dry_run_says(recipe, model, column, width, prompt):
    chosen, text = options_of(recipe), text_of(recipe)
    micro_batch = chosen["per_device_train_batch_size"] * (prompt + chosen["max_completion_length"])
    checkpointed = A2TGPOConfig("unused", gradient_checkpointing=True, use_cpu=True, bf16=False)
    expected = {
        "keys and values, sampling": micro_batch * chosen["steps_per_generation"] * key_value_bytes(model, width),
        "keys and values, scoring": micro_batch * key_value_bytes(model, 2),
        "activations, checkpointed": micro_batch * _activation_bytes(model, 2, checkpointed),
        "a tile of logits": 2 * LOGITS_TILE,
    }
    for name, size in expected.items():
        (line,) = re.findall(rf"#   {name} .*", text)
        said = re.findall(r"\d+\.\d+(?= GB)", line)[column]
        assert float(said) == round(size / 1e9, len(said.partition(".")[2])), name


@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
def test_launch_files_are_accelerates(name):
    from accelerate.commands.config.config_args import load_config_from_file

    file = resources.files("a2tgpo_trl") / "recipes" / "launch" / f"{name}.yaml"
    assert load_config_from_file(str(file)).num_processes == 8


def test_recipes_are_printed(capsys):
    assert main(["recipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines}
    said = {re.match(r"\S+ +", line).end() for line in lines}
    assert len(said) == 1  # in one column
    assert listed == {*recipes(), "launch/ddp", "launch/zero3", "launch/fsdp2"}
    for name in listed:
        assert main(["recipe", name]) == 0
        folder = resources.files("a2tgpo_trl") / "recipes"
        assert capsys.readouterr().out == (folder / f"{name}.yaml").read_text(encoding="utf-8")
    assert main(["recipe", "zero3"]) == 2
    assert "'zero3' is no recipe; there are baselines/grpo" in capsys.readouterr().err


def test_the_papers_steps_are_lost_on_bfloat16_weights():
    """Why its recipes have no dtype."""
    torch.manual_seed(0)
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        weights = torch.nn.Parameter((0.02 * torch.randn(10_000)).to(dtype))
        before, optimizer = weights.detach().clone(), torch.optim.AdamW([weights], lr=1e-6)
        for _ in range(10):
            weights.grad = torch.ones_like(weights)
            optimizer.step()
        moved[dtype] = (weights.detach() != before).float().mean().item()
    assert moved[torch.bfloat16] < 0.05 and moved[torch.float32] > 0.95
