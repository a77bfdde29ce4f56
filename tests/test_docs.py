"""What the documentation shows is what the code does."""

import re
import sqlite3
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.credit import ESTIMATORS, SIGNALS
from a2tgpo_trl.functional import observation_ends, turn_ids
from a2tgpo_trl.records import SCHEMA
from a2tgpo_trl.rewards import format_penalty
from a2tgpo_trl.rollout import StopReason, ToolCall, Turn
from conftest import needed_by

DOCS = Path(__file__).parents[1] / "docs"


def drawing() -> dict[str, str]:
    lines = (DOCS / "rollout.md").read_text(encoding="utf-8").split("```")[1].splitlines()
    return {line.split()[0]: line[11:] for line in lines if line and not line.startswith(" ")}


def test_the_drawing_of_a_rollout(score):
    batch, trainer = score(
        [["<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"]] + [["<answer>Rome</answer><|im_end|>"]] * 3
    )
    masks = batch["completion_mask"][:1], batch["tool_mask"][:1]
    ids, (ends,) = turn_ids(*masks)[0], observation_ends(*masks)
    rows = {"tokens": "", "tool_mask": "", "turn_ids": ""}
    places = []
    for token, mask, turn, is_real in zip(
        batch["completion_ids"][0].tolist(),
        batch["tool_mask"][0].tolist(),
        ids.tolist(),
        masks[0][0].tolist(),
        strict=True,
    ):
        if not is_real:
            break
        text = trainer._tokenizer.decode(token).replace("\n", "⏎").replace("<|im_end|>", "■")
        places.append(len(rows["tokens"]) + len(text) - 1)
        rows["tokens"] += text
        rows["tool_mask"] += str(mask) * len(text)
        rows["turn_ids"] += ("·" if turn < 0 else str(turn)) * len(text)
    drawn = drawing()
    prompt, completion = drawn["tokens"].split("?", 1)
    assert prompt + "?" == "…Lyon is?"
    assert completion == rows["tokens"]
    assert drawn["tool_mask"].strip() == rows["tool_mask"]
    assert drawn["turn_ids"].strip() == rows["turn_ids"]
    start = drawn["tokens"].index("?")
    marks = drawn["beliefs"]
    assert marks.index("↑0") == start  # under the prompt's last character
    assert marks.index("↑1") == start + 1 + places[int(ends[0]) - 1]


def test_what_rollouts_are_in_python(build, rows, capsys):
    """The examples run, and every name of the tables is there."""
    text = (DOCS / "rollout.md").read_text(encoding="utf-8")
    section = text[text.index("## What it is in Python") : text.index("## Tools")]
    loop, reward = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    names = {}
    exec(reward, names)
    trainer = build(reward=names["search_reward"], per_device_eval_batch_size=4)
    played = trainer.play(rows[:1], num_generations=4)
    assert [rollout.reward for rollout in played] == [1.0, 1.0, 0.0, 1.0]  # 0, 1, 3 and 2 calls
    exec(loop, {"trainer": trainer, "rows": rows[:1]})
    assert "Lyon is in France." in capsys.readouterr().out
    first, second = (re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for table in section.split("of a `Turn`"))
    for cells, thing in ((first, played[1]), (second, played[1].turns[0])):
        assert len(cells) >= 6
        assert all(hasattr(thing, name) for cell in cells for name in re.findall(r"`(\w+)`", cell))
    (credit,) = re.findall(r"^\| `credit` \|(.*)", section, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", credit)) - {"None"} <= played[1].turns[0].credit.keys()


def test_every_stop_reason_is_explained():
    text = (DOCS / "rollout.md").read_text(encoding="utf-8")
    assert all(f"| `{reason}` |" in text for reason in StopReason)


def documented_metrics() -> set[str]:
    """Names in the first columns of the tables of metrics."""
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").split("## Turn records")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_metric_that_a_run_logs_is_explained(build):
    """Of one run of A²TGPO with all that TRL logs, and of the methods that have more columns."""
    adapter = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    runs = [
        dict(beta=0.01, max_steps=2, peft_config=adapter),
        dict(advantage_estimator="trace", max_steps=1),
        dict(advantage_estimator="turn_ppo", max_steps=1),
        dict(advantage_estimator="gigpo", max_steps=1, turn_reward_funcs=format_penalty),
        dict(advantage_estimator="at2po", max_steps=1, tree_chains=4),
    ]
    logged = set()
    for options in runs:
        trainer = build(**options)
        trainer.train()
        *steps, summary = trainer.state.log_history
        logged |= {name for row in steps for name in row} - {"step"}
        assert "train_runtime" in summary
    functions = "search", "correct", "format_penalty"
    general = {re.sub(rf"/({'|'.join(functions)})/", "/{name}/", name) for name in logged}
    assert {re.sub(r"turn_\d+", "turn_{k}", name) for name in general} == documented_metrics()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_columns_of_the_methods_are_metrics_that_are_explained(name):
    columns = {f"{column}/mean" for column in ESTIMATORS[name].columns} - {"normalized_gain/mean"}
    assert columns <= documented_metrics()


def test_every_metric_has_a_unit_and_a_meaning():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").split("## Turn records")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            _, unit, what, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            assert unit and what and len(rest) == 2, line


def test_turn_records_are_explained():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").split("## Turn records")[1]
    described = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", text, flags=re.MULTILINE))
    assert described == {field.name: field.metadata[b"what"].decode() for field in SCHEMA}


# ---- methods -------------------------------------------------------------------------------------------------------


def rows_below(header: str) -> dict[str, list[str]]:
    """The table of docs/methods.md that begins with a header: the cells of each row, by the name in the first one."""
    lines = (DOCS / "methods.md").read_text(encoding="utf-8").partition(header)[2].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[: lines.index("")]]
    return {re.search(r"`(\w+)`", first)[1]: rest for first, *rest in rows}


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def methods() -> dict[str, dict[str, str]]:
    titles = ("paper", "reads", "costs", "when", "options", "identities", "departures")
    return {name: dict(zip(titles, cells, strict=True)) for name, cells in rows_below("| method |").items()}


def test_every_method_is_compared():
    assert list(methods()) == list(ESTIMATORS)
    assert all(cell for row in methods().values() for cell in row.values())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_comparison_says_what_the_class_says(name):
    cls, row = ESTIMATORS[name], methods()[name]
    assert row["paper"] == (cls.paper or "in no paper")
    assert named(row["reads"]) == [*cls.signals, *cls.optional_signals]
    config = A2TGPOConfig("unused", advantage_estimator=name, use_cpu=True, bf16=False, **needed_by(name))
    assert named(row["options"]) == [f"{option}={getattr(config, option)}" for option in cls.options]
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert f"[`{name}`](#{name})" in text and f"\n## {name}\n" in text


def test_signals_are_those_that_are_measured():
    rows = rows_below("| signal |")
    assert {name: tuple(named(cells[-1])) for name, cells in rows.items()} == dict(SIGNALS)


def test_the_readme_has_a_line_for_each_method():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| a turn earns |")[2].partition("\n\n")[0]
    assert re.findall(r'^\| `"(\w+)"` \|', table, flags=re.MULTILINE) == list(ESTIMATORS)


def test_switches_that_are_named_are_options():
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in ("methods.md", "turn_rewards.md"))
    options = {option.name for option in fields(A2TGPOConfig)}
    assert set(re.findall(r"`(\w+)=", text)) - {"turn_reward_funcs"} <= options


def test_the_example_of_turn_rewards_trains(tmp_path):
    script, *_ = re.findall(r"```python\n(.*?)```", (DOCS / "turn_rewards.md").read_text(encoding="utf-8"), re.DOTALL)
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.chat_tokenizer().save_pretrained(tmp_path / "model")
    toy = "max_completion_length=16, max_steps=1, use_cpu=True, bf16=False, report_to=[], logging_steps=1, "
    for shown, tried in {
        "Qwen/Qwen3-0.6B": str(tmp_path / "model"),
        'A2TGPOConfig("outputs/new-queries", ': f'A2TGPOConfig("{tmp_path}/run", {toy}',
    }.items():
        assert script.count(shown) == 1
        script = script.replace(shown, tried)
    namespace = {}
    exec(script, namespace)
    logged = namespace["trainer"].state.log_history[0]
    assert {"turn_rewards/new_queries/mean", "turn_rewards/format_penalty/turn_0"} <= logged.keys()
    ask, again = ToolCall("search", {"query": "Lyon"}), ToolCall("search", {"query": "Bern"})
    turns = [Turn([1], {}, calls=[call]) if call else Turn([1], {}) for call in (ask, again, ask, None)]
    assert namespace["new_queries"]([turns, turns[1:]]) == [[0.1, 0.1, -0.1, None], [0.1, 0.1, None]]


def test_other_examples_of_turn_rewards(config, monkeypatch):
    """The tool's reward, and the state that an environment is in."""
    _, guess, rooms, _ = re.findall(
        r"```python\n(.*?)```", (DOCS / "turn_rewards.md").read_text(encoding="utf-8"), re.DOTALL
    )
    namespace = {}
    exec(guess + rooms, namespace)
    assert (namespace["guess"](70).content, namespace["guess"](70).reward) == ("warmer", 0.2)
    call = '<tool_call>\n{"name": "walk", "arguments": {"door": "%s"}}\n</tool_call><|im_end|>'
    script = [[call % door, "<answer>Paris</answer><|im_end|>"] for door in ("left", "right", "left", "red")]
    tiny.Script(script).install(monkeypatch)
    trainer = A2TGPOTrainer(
        tiny.model(), lambda completions, **_: [1.0, 0.0, 0.0, 1.0], config(advantage_estimator="gigpo"),
        Dataset.from_list([{"prompt": [{"role": "user", "content": "Walk."}]}] * 8), processing_class=tiny.chat_tokenizer(),
        environment_factory=namespace["Rooms"], tools=[namespace["guess"]],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["lone_state/mean"] == 0  # all stand in the cellar, whichever door they took


def test_the_example_of_text_to_sql_trains(config, tmp_path, monkeypatch):
    """With a database of that name, and scripted queries."""
    *_, example = re.findall(r"```python\n(.*?)```", (DOCS / "turn_rewards.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("shop.db")) as connection, connection:
        connection.execute("CREATE TABLE product (name)")
        connection.execute("INSERT INTO product VALUES ('tea')")
    tiny.model().save_pretrained("model")
    tiny.chat_tokenizer().save_pretrained("model")
    call = '<tool_call>\n{"name": "query", "arguments": {"sql": "%s"}}\n</tool_call><|im_end|>'
    right, wrong = "SELECT name FROM product", "SELECT price FROM product"
    script = [[call % sql, f"<answer>{sql}</answer><|im_end|>"] for sql in (right, wrong, right, right)]
    tiny.Script(script).install(monkeypatch)
    row = {"prompt": [{"role": "user", "content": "Which products are there?"}], "answer": right}
    given = {"model": "model", "args": config(advantage_estimator="mt_grpo"), "dataset": Dataset.from_list([row] * 8)}
    namespace = {"A2TGPOTrainer": A2TGPOTrainer, **given}
    exec(example, namespace)
    namespace["trainer"].train()
    log = namespace["trainer"].state.log_history[0]
    assert log["rewards/execution_match/mean"] == 0.75
    assert log["turn_rewards/query_reward/mean"] == pytest.approx((3 * 1 - 0.1) / 4)
