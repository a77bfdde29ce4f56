"""What wandb, trackio and tensorboard hold after a run."""

import json
import time

import pytest
from datasets import Dataset
from transformers import TrainerCallback

import tiny
from a2tgpo_trl.records import SCHEMA
from conftest import QUESTION

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = range(1, 5)


def read_log(data):
    """The records of a log in LevelDB's format: blocks of chunks, each with checksum, length and type before it."""
    position, parts = FILE_HEADER, []
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or position + HEADER + size > len(data):
            return
        parts.append(data[position + HEADER : position + HEADER + size])
        position += HEADER + size
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def read_records(folder):
    """What wandb wrote of its offline run, once all of it is there: its service may still write after `finish`."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(300):
        records = [wandb_internal_pb2.Record.FromString(data) for data in read_log(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} does not end")


def read_offline_run(folder):
    """Config, history rows and metric definitions of wandb's offline run."""
    config, history, metrics = {}, [], {}
    for record in read_records(folder):
        updates = [*record.run.config.update, *record.config.update]
        config |= {update.key: json.loads(update.value_json) for update in updates if update.key}
        if record.history.item:
            row = {}
            for item in record.history.item:
                *path, key = item.nested_key or [item.key]
                (row.setdefault(path[0], {}) if path else row)[key] = json.loads(item.value_json)
            history.append(row)
        if record.WhichOneof("record_type") == "metric":
            metrics[record.metric.name or record.metric.glob_name] = record.metric
    return config, history, metrics


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # or it keeps the folder of the run before
    yield wandb
    wandb.teardown()


def read_table(folder, place):
    """A table of wandb's offline run."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    return json.loads((run / "files" / place["path"]).read_text())


QUERIES = [5, "Lyon", [1], {"a": {}}]


@pytest.fixture
def calls_of_any_form(build):
    """`calls_of_any_form(**options)` trains on chats whose calls have an argument of another type each."""

    def train(**options):
        calls = [json.dumps({"name": "search", "arguments": {"query": query}}) for query in QUERIES]
        rollouts = [[f"<tool_call>\n{call}\n</tool_call><|im_end|>", "Paris<|im_end|>"] for call in calls]
        row = {"prompt": [{"role": "user", "content": QUESTION}], "answer": ["Paris"]}
        data = dict(dataset=Dataset.from_list([row] * 8), reward=lambda prompts, **_: [0.0, 1.0, 1.0, 0.0])
        build(rollouts, processing_class=tiny.chat_tokenizer(), log_completions=True, **data, **options).train()

    return train


OF_TREES = ("node", "parent", "depth", "leaves_below", "surprisal")
OF_PICTURES = ("prompt_images", "images", "thumbnails")


def queries(completions):
    return [json.loads(cell)[0]["tool_calls"][0]["function"]["arguments"]["query"] for cell in completions]


def test_wandb_offline(build, tmp_path, wandb):
    build(report_to=["wandb"], turn_table_steps=4, max_steps=6, turn_gamma=0.9).train()
    wandb.finish()
    config, history, metrics = read_offline_run(tmp_path)
    assert {"turn_gamma": 0.9, "turn_advantage_coef": 0.3, "advantage_estimator": "a2tgpo"}.items() <= config.items()

    steps = [row["train/global_step"] for row in history if "train/reward" in row]
    assert steps == [1, 3, 5]
    logged = set().union(*history)
    assert {"train/information_gain/mean", "train/clip_scale/max", "train/tools/search/calls"} <= logged

    tables = [(row["train/global_step"], row["turns"]) for row in history if "turns" in row]
    assert [step for step, _ in tables] == [0, 4]  # batches of steps 0, 2, 4
    content = read_table(tmp_path, tables[0][1])
    assert content["columns"] == ["step", "batch", *[n for n in content["columns"] if n not in ("step", "batch")]]
    assert (
        set(content["columns"]) == set(SCHEMA.names) - {"turn_reward", "turn_rewards", *OF_TREES, *OF_PICTURES}
        and len(content["data"]) == 10
    )
    first = dict(zip(content["columns"], content["data"][1], strict=True))
    assert first["text"] == "<search>Lyon</search>" and json.loads(first["calls"])[0]["name"] == "search"

    assert metrics["train/reward"].summary.max and metrics["train/information_gain/*"].summary.mean
    assert metrics["train/reward"].step_metric == "train/global_step" or metrics["train/reward"].step_metric_index


def test_wandb_takes_calls_of_any_form(calls_of_any_form, tmp_path, wandb):
    calls_of_any_form(report_to=["wandb"])
    wandb.finish()
    _, history, _ = read_offline_run(tmp_path)
    content = read_table(tmp_path, next(row["completions"] for row in history if "completions" in row))
    place = content["columns"].index("completion")
    assert queries(row[place] for row in content["data"]) == QUERIES


@pytest.mark.parametrize("interval, steps", [(1, [0, 2, 4]), (3, [0, 4]), (0, [])])
def test_tables_come_at_their_interval(build, monkeypatch, interval, steps):
    logged = []
    monkeypatch.setattr(
        "a2tgpo_trl.callbacks.recorder.log_table", lambda rows, step, report_to: logged.append((step, len(rows)))
    )
    build(turn_table_steps=interval, max_steps=6).train()
    assert logged == [(step, 10) for step in steps]


def test_trackio(build):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    build(report_to=["trackio"], project="toy", turn_table_steps=4, max_steps=6, turn_gamma=0.9).train()
    (run,) = trackio.Api().runs("toy")
    assert run.config["turn_gamma"] == 0.9
    logs = SQLiteStorage.get_logs("toy", run.name)
    assert [log["train/global_step"] for log in logs if "train/reward" in log] == [1, 3, 5]
    tables = [(log["train/global_step"], log["turns"]["_value"]) for log in logs if "turns" in log]
    assert [(step, len(rows)) for step, rows in tables] == [(0, 10), (4, 10)]
    assert tables[0][1][1]["text"] == "<search>Lyon</search>"


def test_played_rollouts_are_not_tracked(build, rows):
    """Neither before the tracker has a run nor after it, nor among what training logs."""
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    class Player(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.play(rows[:1], num_generations=4)

    trainer = build(
        report_to=["trackio"], project="played", max_steps=2, callbacks=[Player()], per_device_eval_batch_size=4
    )
    assert len(trainer.play(rows[:1], num_generations=4)) == 4
    trainer.train()
    assert len(trainer.play(rows[:1], num_generations=4)) == 4 and trainer.args.report_to == ["trackio"]
    (run,) = trackio.Api().runs("played")
    timed = [log for log in SQLiteStorage.get_logs("played", run.name) if any("generate" in name for name in log)]
    assert len(timed) == trainer.state.global_step // trainer.args.steps_per_generation == 1


def test_trackio_takes_calls_of_any_form(calls_of_any_form):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    calls_of_any_form(report_to=["trackio"], project="any-form")
    (run,) = trackio.Api().runs("any-form")
    logs = SQLiteStorage.get_logs("any-form", run.name)
    rows = next(log["completions"]["_value"] for log in logs if "completions" in log)
    assert queries(row["completion"] for row in rows) == QUERIES


def test_tensorboard(build, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build(report_to=["tensorboard"]).train()
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    assert {"train/reward", "train/information_gain/mean", "train/clip_scale/max"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/reward")] == [1]
    (text,) = events.Tensors("args/text_summary")
    assert b"turn_advantage_coef" in text.tensor_proto.string_val[0]
