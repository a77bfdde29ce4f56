"""The demo with a tiny model in the place of its own, and its parts: traces, records of rollouts, figures, what is kept."""

import io
import json
import math
import re
import shlex
from contextlib import redirect_stdout

import pytest
import torch

import tiny
from a2tgpo_trl import A2TGPOConfig
from conftest import search

pytest.importorskip("matplotlib")
pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model
from trl import GRPOTrainer, ModelConfig

from a2tgpo_trl.cli.parser import parse
from a2tgpo_trl.cli.train import TrainArguments
from a2tgpo_trl.demo.report import format_table, learning_curve, plot_learning_curve, write_rollouts
from a2tgpo_trl.demo.run import DemoSettings, OtherSettings, kept, program, run
from a2tgpo_trl.demo.training import HeldOutPoints, held_out_rows, load_task, make_trainer, measure, summarize
from a2tgpo_trl.demo.warmup import (
    MADE_OF,
    PROMPT_TEMPLATE,
    WarmStart,
    is_kept,
    lazy_pattern,
    made_of,
    tokenize_trace,
    trace_segments,
    warm_up,
)
from a2tgpo_trl.report import plots
from a2tgpo_trl.report.charts import looks
from a2tgpo_trl.rewards import exact_match_reward
from a2tgpo_trl.rollout import Rollout, TagProtocol, Turn

QUESTION = {
    "question": "What is the capital of the country where Lyon is?",
    "answer": ["Paris"],
    "country": "France",
    "supports": ["Lyon", "capital of France"],
}


def one_search(gains, reward=1.0):
    """A rollout of one search, whose turns have these gains."""
    credit = [
        {"information_gain": gain, "normalized_gain": gain and -1.0, "advantage": 0.25 * (k + 1), "clip_scale": scale}
        for k, (gain, scale) in enumerate(zip(gains, (0.9, 1.0), strict=True))
    ]
    searched = [{"role": "tool", "name": "search", "content": "Lyon is in France."}]
    texts = ("<search>Lyon</search>", "<answer>Paris</answer>")
    turns = [
        Turn([], {"role": "assistant", "content": text}, observed=observed, credit=columns)
        for text, observed, columns in zip(texts, (searched, []), credit, strict=True)
    ]
    rewards = {"exact_match_reward": reward}
    prompt = PROMPT_TEMPLATE.format(**QUESTION)
    return Rollout([], turns, prompt=prompt, answer="Paris", rewards=rewards, reward=reward)


PLAYED = one_search([0.5, None])


def make_tiny(folder):
    """A tiny model and its warm start, where the demo keeps its own."""
    model = tiny.model()
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, adapter).save_pretrained(folder / "seed-0" / "warm-start")


def search_and_guess(trainer, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
    """A search, then an answer; each third row answers at once."""
    texts = [
        "<search>Lyon</search>"
        if i % 3 and "</result>" not in trainer._tokenizer.decode(ids)
        else "<answer>x</answer><|im_end|>"
        for i, ids in enumerate(prompt_ids)
    ]
    return [trainer._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], None


class TestWhole:
    """`a2tgpo demo` from its first evaluation to its last line."""

    @pytest.fixture(scope="class")
    def said(self, tmp_path_factory):
        """What it printed, and its folder."""
        folder, said = tmp_path_factory.mktemp("demo"), io.StringIO()
        make_tiny(folder)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
            patch.setattr(GRPOTrainer, "_generate_single_turn", search_and_guess)
            run(DemoSettings(rollout_batches=2, held_out_questions=3), folder)
        return said.getvalue().splitlines(), folder / "seed-0" / "training"

    def test_held_out_questions_are_answered_along_the_way(self, said):
        """Between two batches, when the first has said its own; checkpoints keep it."""
        lines, folder = said
        training = lines[lines.index("Training: 2 batches of 32 rollouts, 8 updates on each:") + 1 :]
        training = training[: training.index("Evaluation after training:")]
        kinds = [re.search("rollout batch|updates|held-out", line)[0] for line in training]
        assert kinds == ["rollout batch", "updates", "held-out", "rollout batch", "updates"]
        curve = json.loads((folder / "result.json").read_text())["curve"]
        assert [point.get("held_out") for point in curve] == [
            {"exact_match": 0.0, "searches": pytest.approx(2 / 3)},
            None,
        ]
        log = json.loads((folder / "checkpoint-16" / "trainer_state.json").read_text())["log_history"]
        assert [row["step"] for row in log if "eval_reward" in row] == [8]

    def test_it_ends_with_what_to_do_next(self, said, tmp_path, monkeypatch):
        lines, folder = said
        assert f"Report:           {folder / 'report.html'}" in lines and (folder / "report.html").is_file()
        *_, head, dry_run, train, report = lines
        assert head.startswith("Next, with your own model, tool and questions")
        words = [shlex.split(line, comments=True)[1:] for line in (dry_run, train, report)]
        arguments, config, _ = parse("train", "", (TrainArguments, A2TGPOConfig, ModelConfig), words[0][1:])
        assert words[0] == [*words[1], "--dry_run"] and arguments.dry_run
        monkeypatch.chdir(tmp_path)
        (tmp_path / "train.jsonl").write_text(re.search(r"\{.*\}", head)[0])
        (tmp_path / "my_tools.py").write_text(
            'def my_tool(query: str) -> str:\n    """Looks up.\n\n    Args:\n        query: What.\n    """\n'
        )
        assert [tool.__name__ for tool in arguments.load_tools()] == ["my_tool"]
        assert arguments.load_data(arguments.dataset, arguments.dataset_split, "{question}")[0]["answer"] == ["…"]
        assert words[2] == ["report", config.output_dir]


def test_the_command_by_its_path_where_it_is_not_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "my env" / "python"))
    assert shlex.split(program()) == ["a2tgpo"]
    (tmp_path / "my env").mkdir()
    (tmp_path / "my env" / "a2tgpo").touch()
    assert shlex.split(program()) == ["my env/a2tgpo"]
    monkeypatch.setenv("PATH", str(tmp_path / "my env"))
    (tmp_path / "my env" / "a2tgpo").chmod(0o755)
    assert program() == "a2tgpo"


def test_answers_along_the_way_leave_training_as_it_is(tmp_path):
    """What is sampled next does not depend on them."""
    make_tiny(tmp_path)
    task = load_task()
    trainer = make_trainer(tmp_path / "model", tmp_path / "seed-0" / "warm-start", task, tmp_path / "run", 1, seed=0)
    before = torch.get_rng_state()
    measure(trainer, held_out_rows(task, 1), "greedy")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_question_may_be_answered_several_times(monkeypatch, capsys):
    played = []

    class Trainer:
        def play(self, rows, greedy, num_generations):
            played.append((len(rows), greedy, num_generations))
            return []

    monkeypatch.setattr("a2tgpo_trl.demo.training.summarize", lambda rollouts: {"exact_match": 0.5, "searches": 2.0})
    measure(Trainer(), [{}, {}], "sampled", 3)
    measure(Trainer(), [{}, {}], "greedy")
    assert played == [(2, False, 3), (2, True, 1)]
    several, once = capsys.readouterr().out.splitlines()
    assert several.startswith("  2 held-out questions, sampled 3 times: exact match 0.50")
    assert once.startswith("  2 held-out questions, greedy: exact match 0.50")


@pytest.mark.parametrize("batches, after", [(1, set()), (2, {1}), (3, {1, 2}), (6, {2, 4}), (100, {33, 67})])
def test_points_along_the_way_are_few(batches, after):
    assert HeldOutPoints(None, [])._steps(batches) == {8 * batch for batch in after}


def test_held_out_countries_are_never_trained_on():
    task = load_task()
    assert not {q["country"] for q in task.train} & {q["country"] for q in task.held_out}
    assert len(task.train) > 1000 and len(task.held_out) > 200


def test_lazy_share():
    assert sum(lazy_pattern(200, 0.6)) == 120
    assert all(4 <= sum(lazy_pattern(200, 0.6)[i : i + 8]) <= 5 for i in range(0, 200, 8))


def test_a_warm_start_of_other_settings_is_made_again(tmp_path, monkeypatch):
    kept = tmp_path / "warm-start"
    kept.mkdir()
    (kept / MADE_OF).write_text(json.dumps(made_of(WarmStart(seed=3))))
    assert warm_up(tmp_path / "no model", kept, [], search, WarmStart(seed=3)) == kept
    assert not is_kept(kept, WarmStart(seed=4)) and not is_kept(tmp_path / "absent", WarmStart(seed=3))
    monkeypatch.setattr("a2tgpo_trl.demo.warmup.ANSWER_TEMPLATE", "<answer>{answer}</answer>")
    with pytest.raises(OSError, match="no model"):  # it is trained again, of traces of another form
        warm_up(tmp_path / "no model", kept, [], search, WarmStart(seed=3))


@pytest.mark.parametrize("lazy", [True, False])
def test_a_trace_is_what_a_rollout_would_be(score, rows, lazy):
    """Token for token, with the model's own tokens labelled and no others."""
    rows[:] = [{"prompt": PROMPT_TEMPLATE.format(**QUESTION), "answer": ["Paris"]}] * 8
    full = [*(f"<search> {query}</search>" for query in QUESTION["supports"]), "<answer> Paris</answer><|im_end|>"]
    short = ["<search> Lyon</search>", "<answer> France</answer><|im_end|>"]
    batch, _ = score([short if lazy else full] * 4, answer_stop="")  # as the demo does
    played = batch["prompt_ids"][0].tolist() + batch["completion_ids"][0].tolist()
    tokenizer = tiny.tokenizer()
    trace = tokenize_trace(
        rows[0]["prompt"], trace_segments(QUESTION, search, lazy), tokenizer, TagProtocol(tokenizer, [search])
    )
    assert trace["input_ids"] == played
    labelled = [label != -100 for label in trace["labels"][-batch["completion_ids"].size(1) :]]
    assert labelled == (batch["turn_ids"][0] >= 0).tolist()


def test_summary():
    unscored = one_search([None, 4.0])  # turn 0 is absent, and turn 1 stays turn 1
    assert summarize([PLAYED, unscored])["gains"] == [0.5, 4.0]
    wrong = one_search([1.5, 2.0], reward=0.0)
    summary = summarize([PLAYED, wrong])
    assert (summary["exact_match"], summary["searches"], summary["gains"]) == (0.5, 1.0, [1.0, 2.0])
    lazy = Rollout([], PLAYED.turns[1:], rewards={"exact_match_reward": 0.0})
    assert summarize([PLAYED, lazy])["searches"] == 0.5 and summarize([PLAYED, lazy])["gains"] == [0.5]


@pytest.mark.parametrize("result_tag", ["result", "information"])
def test_what_is_said_of_played_rollouts(build, rows, result_tag):
    """Whatever tag results have."""
    rollouts = [["<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"]] * 2 + [
        ["<answer>Rome</answer><|im_end|>"]
    ] * 2
    played = build(rollouts, reward=exact_match_reward, result_tag=result_tag).play(rows[:1], num_generations=4)
    summary = summarize(played)
    assert (summary["exact_match"], summary["searches"]) == (0.5, 0.5) and len(summary["gains"]) == 1
    assert [(turn.text, turn.observation) for turn in played[0].turns] == [
        ("<search>Lyon</search>", "Lyon is in France."),
        ("<answer>Paris</answer>", None),
    ]


def test_report(tmp_path, monkeypatch):
    log = [
        {"reward": 0.25, "turns/tool_mean": 1.0, "information_gain/turn_0": 0.5, "clip_ratio/region_mean": 0.0},
        {"clip_ratio/region_mean": 0.2},
        {"eval_reward": 0.5, "eval_turns/tool_mean": 1.5},
        {"reward": 0.75, "turns/tool_mean": 2.0, "information_gain/turn_0": 0.7, "clip_ratio/region_mean": 0.1},
    ]
    curve = learning_curve(log)
    assert [point["clipped"] for point in curve] == [0.1, 0.1]
    before = {m: {"exact_match": 0.1, "searches": 1.0, "gains": [0.5]} for m in ("greedy", "sampled")}
    after = {m: {"exact_match": 0.9, "searches": 2.0, "gains": [0.5, 5.0]} for m in ("greedy", "sampled")}
    drawn = []
    draw = plots.draw
    monkeypatch.setattr(
        plots, "draw", lambda axis, chart, *a, **kw: drawn.append(chart) or draw(axis, chart, *a, **kw)
    )
    plot_learning_curve(curve, before, after, tmp_path / "curve.png")
    lines = {(chart.title, one.name): (one.x, one.y) for chart in drawn for one in chart.series}
    assert lines["Exact match", "training, sampled"] == ([1, 2], [0.25, 0.75])
    assert lines["Searches", "held out, greedy"] == ([0.5, 1.5, 2.5], [1.0, 1.5, 2.0])
    assert lines["Exact match", "held out, greedy"] == ([0.5, 1.5, 2.5], [0.1, 0.5, 0.9])
    assert [(look.dash, look.is_light) for look in looks(drawn[0], [""])] == [(0, True), (0, False)]
    assert lines["Mean information gain", "search 1"] == ([1, 2], [0.5, 0.7])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split() for line in format_table(before, after).splitlines()]
    assert ["exact", "match,", "greedy", "0.10", "0.90", "+0.80"] in rows
    assert ["information", "gain", "of", "search", "2,", "sampled", "–", "5.00", "–"] in rows
    clips = {"clip_low": 1 - 0.9 * 0.03, "clip_high": 1 + 0.9 * 0.04}
    texts = [("<search>Lyon</search>", "\n<result>Lyon is in France.</result>\n"), ("<answer>Paris</answer>", None)]
    turns = [
        {"prompt": PLAYED.prompt, "answer": "Paris", "text": text, "observation": observation, **turn.credit, **clips}
        for (text, observation), turn in zip(texts, PLAYED.turns, strict=True)
    ]
    write_rollouts([("One", [turns])], tmp_path / "rollouts.md")
    page = (tmp_path / "rollouts.md").read_text()
    assert "<search>Lyon</search>\n<result>Lyon is in France.</result>\n<answer>Paris</answer>" in page
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert table[0] == ["turn", "advantage", "gain", "normalised", "clip range", "clip scale"]
    assert table[2:] == [
        ["0", "+0.25", "+0.50", "−1.00", "0.9730 – 1.0360", "×0.90"],
        ["1", "+0.50", "–", "–", "0.9730 – 1.0360", "×1.00"],
    ]


def test_what_was_made_is_kept(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": 1}

    assert kept(tmp_path / "a" / "x.json", make) == kept(tmp_path / "a" / "x.json", make) == {"x": 1}
    assert made == [1]


def test_a_kept_run_is_neither_lost_nor_mixed_up(tmp_path, capsys):
    folder = tmp_path / "seed-0" / "training"
    folder.mkdir(parents=True)
    settings = {"seed": 0, "rollout_batches": 4, "held_out_questions": 40, "samples": 1}
    numbers = {m: {"exact_match": 0.5, "searches": 1.0, "gains": []} for m in ("greedy", "sampled")}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "result.json").write_text(json.dumps({"before": numbers, "after": numbers}))
    run(DemoSettings(), tmp_path)
    assert "finished" in capsys.readouterr().out
    with pytest.raises(OtherSettings, match="--restart replaces it"):
        run(DemoSettings(rollout_batches=7), tmp_path)
    assert math.isclose(json.loads((folder / "result.json").read_text())["after"]["greedy"]["exact_match"], 0.5)
