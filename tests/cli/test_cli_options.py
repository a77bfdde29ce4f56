"""What options come to: files, recipes, names of tools and searches, default prompts."""

import subprocess
import sys
import types

import pytest
from datasets import Dataset
from trl import ModelConfig

import tiny
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli.eval import EvalArguments
from a2tgpo_trl.cli.main import BadUsage
from a2tgpo_trl.cli.memory import Part, peak
from a2tgpo_trl.cli.names import named, tag_of_finish
from a2tgpo_trl.cli.parser import defaults_of_this_machine, parse
from a2tgpo_trl.cli.prompts import default_template
from a2tgpo_trl.cli.searches import check_names, check_retrievers, load_searches
from a2tgpo_trl.cli.train import TrainArguments
from a2tgpo_trl.rewards import exact_match_reward
from a2tgpo_trl.rollout import TagProtocol
from a2tgpo_trl.search import BM25Search
from a2tgpo_trl.tools import calculator, finish

CPU = ["--use_cpu", "--bf16", "false"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled(*options, ignored=()):
    """TrainArguments, A2TGPOConfig and ModelConfig of a command line."""
    return parse("train", "", (TrainArguments, A2TGPOConfig, ModelConfig), [*options, "--dataset", "atlas"], ignored)


def test_files_are_merged_in_their_order(workplace):
    (workplace / "a.yaml").write_text("max_steps: 1\nsave_steps: 1\nlogging_steps: 1\n")
    (workplace / "b.yaml").write_text("max_steps: 2\nsave_steps: 2\n")
    for flags in (["--config", "a.yaml", "--config", "b.yaml"], ["--config=a.yaml", "--config=b.yaml"]):
        _, config, _ = filled(*flags, "--max_steps", "3", *CPU)
        assert (config.max_steps, config.save_steps, config.logging_steps) == (3, 2, 1)


def test_recipes_can_be_combined():
    arguments, config, model = filled("--config", "paper-multihop", "--config", "vllm-colocate", *CPU)
    assert config.use_vllm and config.vllm_mode == "colocate"
    assert config.max_tool_calling_iterations == 6 and model.model_name_or_path == "Qwen/Qwen3-4B"
    assert arguments.search_url == ["http://127.0.0.1:8000/retrieve"]


def test_one_value_stands_for_a_list(workplace):
    (workplace / "run.yaml").write_text(
        "tools: search\nsearch_index: atlas\nrewards: f1\nreward_weights: 1e-1\nlora_target_modules: all-linear\n"
    )
    arguments, config, model = filled("--config", "run.yaml", *CPU)
    assert (arguments.tools, arguments.search_index, arguments.rewards) == (["search"], ["atlas"], ["f1"])
    assert config.reward_weights == [0.1] and model.lora_target_modules == "all-linear"
    (workplace / "without.yaml").write_text("tools: null\nsearch_index: null\n")
    arguments, _, _ = filled("--config", "run.yaml", "--config", "without.yaml", *CPU)
    assert arguments.tools == [] and arguments.search_index == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("max_steps: [1\n", r"--config bad.yaml is no YAML .*line 2"),
        ("- max_steps\n", r"--config bad.yaml must hold options by name"),
        (
            "max_stebs: 1\nmax_steps: 1\n",
            r"--config bad.yaml has unknown options: max_stebs; did you mean max_steps\? \(a2",
        ),
        ("config: other.yaml\n", r"unknown options: config"),
        ("reward_weights: many\n", r"argument --reward_weights.*: invalid float value: 'many'"),
        ("max_steps: many\n", r"argument --max_steps.*: invalid int value: 'many'"),
    ],
)
def test_bad_files(workplace, text, message):
    (workplace / "bad.yaml").write_text(text)
    with pytest.raises(BadUsage, match=message) as error:
        filled("--config", "bad.yaml")
    assert "\n" not in str(error.value) and "fail_with_unknown_args" not in str(error.value)


def test_unknown_flags_and_files():
    with pytest.raises(BadUsage, match=r"^unknown: --zzz 3 \(a2tgpo train --help lists the options\)$"):
        filled("--zzz", "3")
    with pytest.raises(
        BadUsage, match=r"^unknown: --dataset_name=q --max-stebs 3; did you mean dataset, max_steps\? \("
    ):
        filled("--dataset_name=q", "--max-stebs", "3")
    with pytest.raises(BadUsage, match=r"--config nowhere: no such file, and the recipes are .*vllm-colocate"):
        filled("--config", "nowhere")


def test_options_of_other_commands_may_be_in_a_file(workplace):
    (workplace / "run.yaml").write_text("samples: 3\n")
    filled("--config", "run.yaml", *CPU, ignored={"samples"})
    with pytest.raises(BadUsage, match="samples"):
        filled("--config", "run.yaml", *CPU)


def test_a_machine_without_accelerator_takes_its_cpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    _, config, _ = filled()
    assert config.use_cpu and not config.bf16
    assert filled("--bf16", "true")[1].bf16 and not filled("--use_cpu", "false")[1].use_cpu
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert defaults_of_this_machine() == {}


@pytest.mark.parametrize("capability, expected", [((7, 5), {"fp16": True, "bf16": False}), ((8, 0), {})])
def test_precision_as_the_card_allows(monkeypatch, capability, expected):
    for name, value in {
        "accelerator.is_available": True,
        "cuda.is_available": True,
        "cuda.get_device_capability": capability,
    }.items():
        monkeypatch.setattr(f"torch.{name}", lambda value=value: value)
    monkeypatch.setattr("torch.version.cuda", "12.8")
    assert defaults_of_this_machine() == expected


def test_finish_by_text_tags_is_an_answer():
    arguments, *_ = filled("--tools", "calculator", "finish")
    options = config()
    tag_of_finish(arguments.load_tools(), options)
    tokenizer = tiny.tokenizer()
    protocol = TagProtocol(tokenizer, [calculator, finish], options.tool_tags, options.result_tag)
    assert "<answer>answer</answer>" in default_template([finish], tiny.tokenizer(), False, options)
    text = "<answer>Paris</answer>"
    _, (call,) = protocol.read_turn(tokenizer.encode(text), [], [])
    assert call.name == "finish" and exact_match_reward([text], answer=["Paris"]) == [1.0]
    given = config(tool_tags={"finish": "done"})
    tag_of_finish([finish], given)
    assert given.tool_tags == {"finish": "done"}


def sets(*options):
    arguments, *_ = parse("eval", "", (EvalArguments, A2TGPOConfig, ModelConfig), [*CPU, "--datasets", *options])
    return list(arguments.sets())


def test_splits_and_subsets_of_several_sets():
    both = ["nq=hub/sets", "tqa=hub/sets"]
    assert sets(*both) == [("nq", "hub/sets", "test", None), ("tqa", "hub/sets", "test", None)]
    assert sets(*both, "--subset", "nq", "triviaqa", "--split", "dev") == [
        ("nq", "hub/sets", "dev", "nq"),
        ("tqa", "hub/sets", "dev", "triviaqa"),
    ]
    with pytest.raises(BadUsage, match=r"split has 3 values: give one for all sets, or one for each of 2"):
        sets(*both, "--split", "a", "b", "c")


@pytest.mark.parametrize(
    "text, message",
    [
        ("def one(:", r"tools: 'my.one' cannot be imported \(SyntaxError"),
        ("one = two", r"tools: 'my.one' cannot be imported \(NameError"),
        ("raise SystemExit(1)", r"tools: 'my.one' cannot be imported \(SystemExit"),
        ("one = 1", r"tools: 'my.one' is a int: name a function"),
        ("two = 1", r"tools: 'my.one' cannot be imported \(AttributeError"),
    ],
)
def test_modules_that_cannot_be_used(workplace, monkeypatch, text, message):
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.delitem(sys.modules, "my", raising=False)
    (workplace / "my.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        named("my.one", "tools")


def test_several_searches_are_several_tools(workplace):
    corpus = workplace / "wiki.jsonl"
    corpus.write_text('{"title": "Lyon", "text": "Lyon is a city."}\n{"title": "Bern", "text": "Bern is a town."}\n')
    BM25Search.build(corpus, workplace / "wiki.bm25")
    wiki, facts = load_searches([], ["wiki=wiki.bm25", "facts=atlas"], top_k=1)
    assert (wiki.__name__, facts.__name__) == ("search_wiki", "search_facts")
    assert wiki("Lyon") == "(1) Lyon: Lyon is a city." and "Searches wiki" in wiki.__doc__
    (alone,) = load_searches([], ["wiki.bm25"], top_k=1)
    assert alone.__name__ == "search" and alone("Bern") == "(1) Bern: Bern is a town."
    (named_alone,) = load_searches(["news=http://127.0.0.1:9/retrieve?k=3"], [])
    assert named_alone.__name__ == "search_news"


@pytest.mark.parametrize("sources", [["a.bm25", "b.bm25"], ["wiki=a.bm25", "b.bm25"], ["wiki=a.bm25", "wiki=b.bm25"]])
def test_several_searches_need_names(sources):
    for urls, indexes in ((sources, []), (sources[:1], sources[1:])):
        with pytest.raises(ValueError, match=r"search_url and search_index are 2 searches.*give each a name"):
            check_names(urls, indexes)


def test_a_search_that_is_not_there():
    with pytest.raises(ValueError, match="search_index: nowhere holds no index"):
        load_searches([], ["nowhere"])
    with pytest.raises(ValueError, match=r"search_url: .*http://127.0.0.1:9/retrieve cannot be .* a2tgpo retriever"):
        check_retrievers(["news=http://127.0.0.1:9/retrieve"])


@pytest.mark.parametrize(
    "split, columns, subset, message",
    [
        ("dev", None, None, "the split of the atlas is 'dev': it has train and test"),
        ("test", {"answer": "a"}, None, "columns and subsets"),
        ("test", None, "nq", "columns and subsets"),
    ],
)
def test_the_atlas_has_two_splits_and_no_columns(split, columns, subset, message):
    with pytest.raises(ValueError, match=message):
        TrainArguments(dataset="atlas", columns=columns).load_data("atlas", split, "{question}", subset)


def test_a_subset_goes_to_the_hub(monkeypatch):
    def load_dataset(name, subset, split, streaming):
        return Dataset.from_list([{"question": f"{name} {subset} {split}", "answer": "a"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (row,) = TrainArguments(dataset="some/sets").load_data("some/sets", "test", "{question}!", "nq")
    assert row["prompt"] == "some/sets nq test!"


def config(**options):
    return A2TGPOConfig("run", use_cpu=True, bf16=False, report_to=[], **options)


def test_the_default_prompt_tells_the_tags():
    tools = [BM25Search(["Lyon."]).search, calculator]
    text = default_template(tools, tiny.tokenizer(), False, config(tool_tags={"calculator": "math"}, result_tag="r"))
    assert "\n<search>query</search>: Searches the corpus" in text and "<math>expression</math>: Computes" in text
    assert "between <r> and </r>" in text and "<answer>…</answer>" in text and text.endswith("Question: {question}\n")


def test_the_default_prompt_of_chat_tools_and_of_none():
    text = default_template([finish], tiny.chat_tokenizer(), True, config(answer_template="\\boxed{{answer}}"))
    assert "Use the tools" in text and "\\boxed{…}" in text and "<finish>" not in text
    assert "<finish>" in default_template([finish], tiny.tokenizer("{{ messages }}"), True, config())
    text = default_template([], tiny.tokenizer(), False, config())
    assert "tool" not in text and "<answer>…</answer>" in text


def test_the_peak_is_the_largest_phase():
    parts = {"always": Part(10), "a": Part(5, ("generating",)), "b": Part(2, ("scoring", "updating"))}
    assert peak(parts) == ("generating", 15)
    assert peak({**parts, "c": Part(4, ("updating",))}) == ("updating", 16)


def test_the_demo_without_its_libraries(monkeypatch, capsys):
    from a2tgpo_trl.cli.main import main

    def absent(name):
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    module = types.ModuleType("a2tgpo_trl.demo.run")
    module.__getattr__ = absent
    monkeypatch.setitem(sys.modules, "a2tgpo_trl.demo.run", module)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "a2tgpo demo: error: No module named 'peft': pip install 'a2tgpo-trl[demo]'"
    ]


def test_the_demo_begins_without_warnings_of_libraries():
    for library in ("peft", "matplotlib", "bm25s"):
        pytest.importorskip(library)
    command = [sys.executable, "-m", "a2tgpo_trl.cli", "demo", "--help"]  # what the demo imports is imported first
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.parametrize("options", [["--foo"], ["--held-out", "0"], ["--samples", "0"]])
def test_bad_options_of_the_demo_are_one_line(options, capsys):
    pytest.importorskip("peft")
    from a2tgpo_trl.cli.main import main

    assert main(["demo", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a2tgpo demo: error: ")


def test_the_demo_is_interrupted(monkeypatch, capsys, workplace):
    pytest.importorskip("peft")
    from a2tgpo_trl.cli.main import main

    def run(settings, folder, restart):
        assert str(folder) == "here" and settings.held_out_questions == 7
        raise KeyboardInterrupt

    monkeypatch.setattr("a2tgpo_trl.demo.run.run", run)
    assert main(["demo", "--output_dir", "here", "--held_out", "7"]) == 130
    assert "Run the same command to go on" in capsys.readouterr().err
