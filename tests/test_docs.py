"""What the documentation shows is what the code does."""

import re
from pathlib import Path

from peft import LoraConfig

from a2tgpo_trl.functional import observation_ends, turn_ids
from a2tgpo_trl.records import SCHEMA
from a2tgpo_trl.rollout import StopReason

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
    adapter = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build(beta=0.01, max_steps=2, peft_config=adapter)
    trainer.train()
    *steps, summary = trainer.state.log_history
    logged = {name for row in steps for name in row} - {"step"}
    general = {
        re.sub(r"turn_\d+", "turn_{k}", name).replace("/search/", "/{name}/").replace("/correct/", "/{name}/")
        for name in logged
    }
    assert "train_runtime" in summary
    assert general == documented_metrics()


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
