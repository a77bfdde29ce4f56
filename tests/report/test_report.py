"""Reports: what is read of a run, what is worked out of it, and how it is printed, plotted and packed."""

import base64
import gzip
import json
import math
import os
import re
from io import StringIO
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import synthetic
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.integrations.plain import plain
from a2tgpo_trl.records import FOLDER, SCHEMA, RecordStore, read_turns
from a2tgpo_trl.report import Measures, Series, make_charts, plots, read_runs, write_page
from a2tgpo_trl.report.charts import looks, seed_groups
from a2tgpo_trl.report.completions import split_completion
from a2tgpo_trl.report.formats import compact, fixed, percent, seconds, signed
from a2tgpo_trl.report.lines import BINS, MOST_LINES, POINTS, across, band, histogram, line, step_bins
from a2tgpo_trl.report.rollouts import choose_groups, question, read_rollouts
from a2tgpo_trl.report.summary import notes, progress, stop_reasons, tables
from a2tgpo_trl.report.text import BLOCKS, WIDTH, show, sparkline


@pytest.fixture
def folder(tmp_path):
    return synthetic.write_run(tmp_path / "run", rollouts=64)


def read(*folders):
    runs = read_runs(folders)
    return runs, [Measures.of(run) for run in runs]


def charts_of(*folders):
    return {chart.key: chart for chart in make_charts(*read(*folders))}


def completions(folder, step, rows):
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    pd.DataFrame([{"step": step, **row} for row in rows]).to_parquet(
        folder / "completions" / f"completions_{step:05d}.parquet"
    )


def plain_rows(reward=1.0):
    text = "<search>Lyon</search>\n<result>Lyon is in France.</result>\n<answer>Paris</answer>"
    return [
        {
            "prompt": "Where?",
            "completion": text,
            "exact": reward,
            "format": 0.5,
            "information_gain": [0.5 + i, None],
            "normalized_gain": [-1.0 + 2 * i, None],
            "turn_advantages": [0.3, -0.1],
            "clip_scale": [1.1, 1.0],
            "advantage": 0.1,
        }
        for i in range(2)
    ]


class TestFolders:
    def test_records_and_the_newest_checkpoint(self, folder):
        old = folder / "checkpoint-999"  # of an earlier run, longer than this one
        old.mkdir()
        (old / "trainer_state.json").write_text('{"global_step": 999, "log_history": []}')
        os.utime(old / "trainer_state.json", (0, 0))
        (run,), _ = read(folder)
        assert (run.name, run.source, run.notes) == ("run", "turn records", ())
        assert len(run.log) == 16

    def test_the_latest_of_two_states(self, folder):
        (folder / "trainer_state.json").write_text('{"global_step": 99, "log_history": [{"step": 99, "loss": 1.0}]}')
        (run,), _ = read(folder)
        assert run.log == [{"step": 99, "loss": 1.0}]

    def test_of_states_written_at_once_the_latest_step(self, folder):
        for step in (9, 100):
            checkpoint = folder / f"checkpoint-{step}"
            checkpoint.mkdir()
            (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "loss": 1.0}]}))
        for state in folder.glob("checkpoint-*/*.json"):
            os.utime(state, (2e9, 2e9))
        assert read(folder)[0][0].log == [{"step": 100, "loss": 1.0}]

    def test_a_state_of_an_earlier_run_is_left_out(self, folder):
        (state,) = folder.glob("checkpoint-*/trainer_state.json")
        os.utime(state, (0, 0))
        (run,), (measures,) = read(folder)
        assert run.log == []
        assert "checkpoint-16/trainer_state.json is older than the first turn record" in notes(run, measures)[0]
        charts = charts_of(folder)
        assert "entropy" not in charts
        assert charts["reward"].series[0].x == [0, 8]

    def test_a_half_written_checkpoint_leaves_the_one_before(self, folder):
        (folder / "checkpoint-999").mkdir()
        (folder / "checkpoint-999" / "trainer_state.json").write_text('{"log_')
        (run,), _ = read(folder)
        assert run.notes == ("checkpoint-999/trainer_state.json cannot be read (JSONDecodeError).",)
        assert len(run.log) == 16

    def test_a_state_that_cannot_be_read_is_not_said_to_be_missing(self, tmp_path):
        (tmp_path / "trainer_state.json").write_text("")
        with pytest.raises(FileNotFoundError, match="JSONDecodeError"):
            read_runs([tmp_path])

    def test_a_checkpoint_that_vanishes_is_skipped(self, folder, monkeypatch):
        """As when training deletes it between the listing and the reading."""
        glob, gone = Path.glob, folder / "checkpoint-999" / "trainer_state.json"
        monkeypatch.setattr(Path, "glob", lambda self, name: [*glob(self, name), *[gone] * ("trainer_state" in name)])
        (run,), _ = read(folder)
        assert (run.notes, len(run.log)) == ((), 16)

    def test_names_tell_runs_apart(self, tmp_path):
        for path in ("a/x", "b/x", "b/y"):
            synthetic.write_run(tmp_path / path, rollouts=32)
        runs = read_runs([tmp_path / path for path in ("a/x", "b/x", "b/y")])
        assert [run.name for run in runs] == ["a/x", "b/x", "y"]

    def test_missing_parts_are_said(self, tmp_path):
        (run,), (measures,) = read(synthetic.write_run(tmp_path / "run", rollouts=32, log=False))
        assert "No trainer_state.json" in notes(run, measures)[0]

    def test_a_state_alone_is_enough(self, folder):
        for file in (folder / FOLDER).iterdir():
            file.unlink()
        (run,), (measures,) = read(folder)
        assert run.source is None
        assert "no rollouts" in run.notes[0]
        assert "reward" in charts_of(folder)
        assert progress(run, measures)["Reward"][0] == compact(run.log[0]["reward"], digits=3)
        assert write_page([run], [measures], folder / "report.html") == 0

    def test_a_state_that_is_being_written_is_said(self, folder):
        (folder / "trainer_state.json").write_text('{"global_step": 1, "log_')
        (run,), _ = read(folder)
        assert run.notes == ("trainer_state.json cannot be read (JSONDecodeError).",)
        assert len(run.log) == 16

    def test_nothing_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds nothing of a run"):
            read_runs([tmp_path])

    def test_grpo_has_no_gains(self, tmp_path):
        (run,), (measures,) = read(synthetic.write_run(tmp_path / "run", estimator="grpo"))
        assert "the estimator measures none." in notes(run, measures)[0]
        assert notes(run, measures)[1] == "Every turn has the outcome's advantage."
        assert {"gain", "clip-scales", "turn-credit", "group-sizes"}.isdisjoint(charts_of(tmp_path / "run"))
        assert "advantages" in charts_of(tmp_path / "run")


class TestCompletions:
    def test_rows_become_turns(self, tmp_path):
        completions(tmp_path, 1, plain_rows())
        (run,), (measures,) = read(tmp_path)
        assert run.source == "completions tables"
        table = next(run.batches())
        assert table.schema.names == SCHEMA.names
        first, answer = table.slice(0, 2).to_pylist()
        assert first["text"] == "<search>Lyon</search>"
        assert first["observation"].strip() == "<result>Lyon is in France.</result>"
        assert (answer["text"], answer["observation"]) == ("<answer>Paris</answer>", None)
        assert first["information_gain"] == 0.5
        assert (first["turn_group_size"], answer["turn_group_size"]) == (2, None)
        assert (first["advantage"], first["reward"]) == (pytest.approx(0.3), 1.5)
        assert measures.rewards.groupby("name")["value"].mean().to_dict() == {"exact": 1.0, "format": 0.5}
        assert (measures.turns["generation"].tolist(), measures.turns["group"].max()) == ([0, 0, 1, 1], 0)

    def test_rewards_are_those_of_the_log(self, tmp_path):
        completions(tmp_path, 1, [{**row, "tokens": 7} for row in plain_rows()])
        (run,), (measures,) = read(tmp_path)
        assert measures.rollouts["reward"].tolist() == [8.5, 8.5]
        assert "every column of numbers in completions/ counts" in run.notes[-1]
        log = [{"step": 1, "rewards/exact/mean": 1.0, "rewards/format/mean": 0.5}]
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        (run,), (measures,) = read(tmp_path)
        assert measures.rollouts["reward"].tolist() == [1.5, 1.5]
        assert len(run.notes) == 1

    def test_a_rollout_that_no_function_scored_has_no_reward(self, tmp_path):
        completions(tmp_path, 1, [{**row, "format": float("nan")} for row in plain_rows(float("nan"))])
        _, (measures,) = read(tmp_path)
        assert measures.rollouts["reward"].isna().all()

    def test_repeats_of_a_batch_are_left_out(self, tmp_path):
        completions(tmp_path, 1, plain_rows())
        completions(tmp_path, 2, plain_rows())
        completions(tmp_path, 3, plain_rows(0.0))
        _, (measures,) = read(tmp_path)
        assert measures.rollouts["step"].tolist() == [1, 1, 3, 3]

    def test_a_file_that_is_being_written_is_left_out(self, tmp_path):
        completions(tmp_path, 1, plain_rows())
        (tmp_path / "completions" / "completions_00002.parquet").write_bytes(b"PAR1 half")
        assert len(read(tmp_path)[1][0].rollouts) == 2

    def test_without_our_columns(self, tmp_path):
        completions(tmp_path, 1, [{"prompt": "Where?", "completion": "There.", "exact": 1.0, "advantage": 0.25}])
        (run,), (measures,) = read(tmp_path)
        assert measures.turns["advantage"].tolist() == [0.25]
        assert write_page([run], [measures], tmp_path / "report.html") == 1

    def test_messages(self):
        call = {"type": "function", "function": {"name": "search", "arguments": {"query": "Lyon", "other": None}}}
        turns = split_completion(
            [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "one"},
                {"role": "tool", "content": "two"},
                {"role": "assistant", "content": "Paris", "tool_calls": None},
            ]
        )
        assert turns == [
            {"text": "", "observation": "one\ntwo", "calls": [{"name": "search", "arguments": '{"query": "Lyon"}'}]},
            {"text": "Paris", "observation": None, "calls": []},
        ]

    @pytest.mark.parametrize(
        ("text", "texts"),
        [("", [""]), ("a", ["a"]), ("a<result>b</result>", ["a"]), ("a<result>b</result>c", ["a", "c"])],
    )
    def test_tags(self, text, texts):
        assert [turn["text"] for turn in split_completion(text)] == texts


class TestLines:
    def test_means_by_step(self):
        assert line([2, 1, 2, 3], [1.0, 5.0, 3.0, float("nan")]) == ([1, 2], [5, 2])

    def test_many_steps_become_few_points(self):
        x, y = line(range(10 * POINTS), range(10 * POINTS))
        assert len(x) == POINTS
        assert x == y
        assert x[0] == 4.5

    def test_bins_are_even(self):
        sizes = step_bins(list(range(10)), 4).value_counts()
        assert sorted(sizes) == [2, 2, 3, 3]
        assert step_bins([], 4).empty

    def test_band(self):
        x, low, middle, high = band([1] * 11, range(11))
        assert (x, low, middle, high) == ([1], [1], [5], [9])

    def test_histograms_share_their_bins(self):
        x, (one, two) = histogram([[0.0, 1.0, np.nan], [0.5] * 3])
        assert len(x) == BINS
        assert sum(one) == pytest.approx(1, abs=1e-4)
        assert max(two) == 1

    def test_histogram_of_one_value_and_of_none(self):
        x, (shares,) = histogram([[1.0, 1.0]])
        assert max(shares) == 1
        assert x[0] < 1 < x[-1]
        assert histogram([[np.nan], []]) == ([], [])

    def test_outliers_are_in_the_outermost_bin(self):
        x, (shares,) = histogram([[*np.linspace(0, 1, 1000), 1e6]])
        assert x[-1] < 2
        assert sum(shares) == pytest.approx(1, abs=1e-4)


class TestCharts:
    def test_what_there_is(self, folder):
        charts = charts_of(folder)
        assert {"reward", "gain", "advantages", "clip-scales", "group-sizes", "stop-reasons-1", "latency"} <= set(
            charts
        )
        assert all(chart.title and chart.what and chart.x and chart.y for chart in charts.values())
        for chart in charts.values():
            for series in chart.series:
                assert len(series.x) == len(series.y) > 0
                assert all(np.isfinite(series.y))

    def test_gains_are_those_of_the_records(self, folder):
        turns = read_turns(folder).to_pandas()
        means = turns.groupby(["turn", "step"])["information_gain"].mean().dropna()
        whole, *by_turn = charts_of(folder)["gain"].series
        assert whole.name == "all turns"
        assert whole.y == pytest.approx(turns.groupby("step")["information_gain"].mean().tolist(), rel=1e-4)
        for series in by_turn:
            turn = int(series.name.removeprefix("turn "))
            assert series.y == pytest.approx(means[turn].tolist(), rel=1e-4)
            assert series.x == means[turn].index.tolist()

    def test_the_log_wins_where_it_tells(self, folder):
        log = read_runs([folder])[0].log
        logged = [row["reward"] for row in log if "reward" in row]
        assert charts_of(folder)["reward"].series[0].y == pytest.approx(logged, rel=1e-4)

    def test_records_go_on_where_the_log_ends(self, folder):
        (state,) = folder.glob("checkpoint-*/trainer_state.json")
        log = json.loads(state.read_text())["log_history"][:8]
        log[0]["rollout/stop/answered"] = 1.0
        state.write_text(json.dumps({"log_history": log}))
        turns = read_turns(folder).to_pandas()
        last = turns[(turns["turn"] == 0) & (turns["step"] == 8)]
        charts = charts_of(folder)
        (reward,) = charts["reward"].series
        assert reward.x == [1, 9]  # the log counts a step when it is done
        assert reward.y == pytest.approx([log[0]["reward"], last["reward"].mean()], rel=1e-4)
        reasons = charts["stop-reasons-1"].series
        assert [series.x for series in reasons] == [[1, 9]] * len(reasons)
        assert np.sum([series.y for series in reasons], axis=0) == pytest.approx(1)
        (run,), (measures,) = read(folder)
        assert notes(run, measures) == [
            "The log ends at step 8, and rollouts go on: entropy, loss and clip shares end there."
        ]

    def test_beliefs_are_of_all_rollouts(self, folder):
        """A rollout without a scored turn believes what it did on the prompt."""
        rows = [
            {**row, "rewards": dict(row["rewards"]), "step": 0, "batch": 0, "group": 0, "num_turns": 1, "turn": 0}
            | {"generation": generation, "belief_before": before, "belief_after": after, "information_gain": gain}
            for row in read_turns(folder).slice(0, 1).to_pylist()
            for generation, (before, after, gain) in enumerate([(-6.0, -5.0, 1.0), (-1.0, None, None)])
        ]
        for file in (folder / FOLDER).iterdir():
            file.unlink()
        RecordStore(folder / FOLDER, 2**30).append(rows)
        lines = charts_of(folder)["belief"].series
        assert {line.name: line.y for line in lines} == {
            "before the first observation": [-3.5],
            "after the last observation": [-3.0],
        }

    def test_the_most_used_tool_is_drawn(self, folder):
        row = read_turns(folder).slice(0, 1).to_pylist()[0]
        call = {"arguments": "{}", "result": "", "failed": False, "seconds": 0.1}
        calls = [call | {"name": f"a{number}"} for number in range(9)] + [call | {"name": "z"}] * 9
        row |= {"rewards": dict(row["rewards"]), "step": 99, "batch": 99, "calls": calls}
        RecordStore(folder / FOLDER, 2**30).append([row])
        for key, others in {"failures": {"all tools"}, "latency": set()}.items():
            names = [series.name for series in charts_of(folder)[key].series]
            assert {"z", "other tools", *others} < set(names)
            assert len(names) == MOST_LINES - 1 + len(others)

    def test_group_sizes_are_counted_once_a_group(self, folder):
        turns = read_turns(folder).to_pandas().dropna(subset="information_gain")
        groups = turns.groupby(["batch", "group", "turn"]).size()
        (series,) = charts_of(folder)["group-sizes"].series
        assert dict(zip(series.x, series.y, strict=True)) == pytest.approx(
            {size: (groups == int(size)).mean() for size in series.x}, abs=1e-5
        )

    def test_shares_sum_to_one(self, folder):
        reasons = charts_of(folder)["stop-reasons-1"]
        assert np.sum([series.y for series in reasons.series], axis=0) == pytest.approx(1)

    def test_each_run_has_its_number(self, folder, tmp_path):
        other = synthetic.write_run(tmp_path / "other", rollouts=32, seed=1)
        charts = charts_of(folder, other)
        assert [series.run for series in charts["entropy"].series] == [0, 1]
        assert [charts[f"stop-reasons-{number}"].run for number in (1, 2)] == [0, 1]

    def test_an_estimators_own_columns_have_curves(self, tmp_path):
        """From the turns, and from the log as far as it goes."""
        folder = synthetic.write_run(tmp_path / "run", estimator="bonus")
        turns = read_turns(folder).to_pandas()
        bonus = turns["estimator_columns"].map(lambda column: dict(column)["turn_bonus"])
        means = bonus.groupby(turns["step"]).mean()
        chart = charts_of(folder)["own-turn_bonus"]
        assert (chart.title, chart.section) == ("turn_bonus", "Credit")
        assert (chart.series[0].x, chart.series[0].y) == (
            means.index.tolist(),
            pytest.approx(means.tolist(), rel=1e-4),
        )
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "turn_bonus/mean": 7.0}]}))
        assert charts_of(folder)["own-turn_bonus"].series[0].y == [7.0, pytest.approx(means.iloc[-1], rel=1e-4)]
        assert not [key for key in charts_of(synthetic.write_run(tmp_path / "other")) if key.startswith("own-")]

    def test_own_columns_of_completions_tables(self, tmp_path):
        completions(tmp_path, 1, [row | {"turn_bonus": [0.5, None]} for row in plain_rows()])
        assert charts_of(tmp_path)["own-turn_bonus"].series[0].y == [0.5]
        assert set(read(tmp_path)[1][0].rewards["name"]) == {"exact", "format"}

    def test_a_vector_of_a_completion_is_no_column_of_turns(self, tmp_path):
        completions(tmp_path, 1, [row | {"embedding": [0.1] * 50} for row in plain_rows()])
        assert not [key for key in charts_of(tmp_path) if key.startswith("own-")]
        assert set(read(tmp_path)[1][0].rollouts["num_turns"]) == {2}


class TestSeeds:
    """Runs that differ in their seed are one, with a band."""

    @pytest.mark.parametrize(
        ("names", "groups"),
        [
            (["seed-0", "seed-1"], {"2 seeds": [0, 1]}),
            (["a/seed0", "b", "a/seed1"], {"a, 2 seeds": [0, 2], "b": [1]}),
            (["x_seed=1", "y_seed=1"], {"x_seed=1": [0], "y_seed=1": [1]}),
            (["demo/seed-0/training", "demo/seed-1/training"], {"demo/training, 2 seeds": [0, 1]}),
        ],
    )
    def test_names(self, names, groups):
        assert seed_groups(names) == groups

    @pytest.mark.parametrize(
        ("seeds", "groups"),
        [
            ({"a2tgpo": [0, 1], "grpo": [2, 3]}, {"a2tgpo, 2 seeds": [0, 1], "grpo, 2 seeds": [2, 3]}),
            ({"a2tgpo": [0, 1, 2], "grpo": [0, 1]}, {"a2tgpo, 3 seeds": [0, 1, 2], "grpo, 2 seeds": [3, 4]}),
            ({"a2tgpo": [0, 1]}, {"2 seeds": [0, 1]}),
        ],
    )
    def test_seeds_of_one_run_are_those_of_one_folder(self, seeds, groups, tmp_path):
        places = [f"{method}/seed-{seed}" for method, own in seeds.items() for seed in own]
        runs = read_runs([synthetic.write_run(tmp_path / place) for place in places])
        assert seed_groups([run.name for run in runs]) == groups

    def test_mean_lowest_and_highest(self):
        assert across([([1, 1, 2], [0.0, 2.0, 5.0]), ([1, 2], [3.0, 7.0])]) == ([1, 2], [1, 5], [2, 6], [3, 7])

    def test_charts(self, tmp_path):
        folders = [synthetic.write_run(tmp_path / f"seed-{seed}", seed=seed) for seed in range(2)]
        other = synthetic.write_run(tmp_path / "grpo", estimator="grpo")
        charts = charts_of(*folders, other)
        of_each = [charts_of(folder)["entropy"].series[0].y for folder in folders]
        pooled, grpo = charts["entropy"].series
        assert pooled.y == pytest.approx(np.mean(of_each, axis=0), rel=1e-4)
        assert (pooled.low, pooled.high) == (np.min(of_each, axis=0).tolist(), np.max(of_each, axis=0).tolist())
        assert (pooled.run, grpo.run, grpo.low) == (0, 2, None)
        names = ["seed-0", "seed-1", "grpo"]
        assert [(look.label, look.color) for look in looks(charts["entropy"], names)] == [("2 seeds", 0), ("grpo", 1)]
        sizes = [read_turns(folder).to_pandas().dropna(subset="information_gain") for folder in folders]
        counts = pd.concat([turns.groupby(["batch", "group", "turn"]).size() for turns in sizes])
        (series,) = charts["group-sizes"].series
        assert dict(zip(series.x, series.y, strict=True)) == pytest.approx(
            {size: (counts == int(size)).mean() for size in series.x}, abs=1e-5
        )


class TestFormats:
    def test_numbers(self):
        assert [fixed(-0.004), fixed(1.005, 1), fixed(None), signed(0.5), signed(-0.5), signed(0.001)] == [
            "0.00", "1.0", "–", "+0.50", "−0.50", "0.00",
        ]  # fmt: skip
        assert [compact(x) for x in (10234, 12345.6, 1234.56, 0.1, -0.02, 2e6, 1e-5, 0, None, math.nan)] == [
            "10234", "12346", "1235", "0.1", "−0.02", "2.00e+06", "1.00e−05", "0", "–", "–",
        ]  # fmt: skip
        assert [percent(0.5), seconds(0.2345), seconds(1e-4)] == ["50.0 %", "0.234 s", "< 0.001 s"]


class TestSummary:
    def test_progress(self, folder):
        (state,) = folder.glob("checkpoint-*/trainer_state.json")
        state.unlink()
        (run,), (measures,) = read(folder)
        turns = read_turns(folder).to_pandas()
        ends = [turns[turns["step"] == step] for step in (0, 8)]
        gains = tuple(compact(part["information_gain"].mean(), digits=3) for part in ends)
        rewards = tuple(compact(part[part["turn"] == 0]["reward"].mean(), digits=3) for part in ends)
        found = progress(run, measures)
        assert (found["Steps"], found["Gain"], found["Reward"]) == (("0", "8"), gains, rewards)
        assert found.keys() == {"Steps", "Reward", "Turns", "Gain", "Turn credit", "Answered", "Calls failed"}

    @pytest.mark.parametrize("answered", [0, 1])
    def test_the_share_that_answered_where_most_did_not(self, answered, tmp_path):
        (run,), (measures,) = read(synthetic.write_run(tmp_path, log=False))
        first = measures.turns.index[measures.turns["turn"] == 0]
        measures.turns["stop_reason"], measures.turns["step"] = "max_turns", 0
        measures.turns.loc[first[:answered], "stop_reason"] = "answered"
        share = percent(answered / len(first))
        assert progress(run, measures)["Answered"] == (share, share)

    def test_tables_and_stop_reasons(self, folder):
        (_,), (measures,) = read(folder)
        turns = read_turns(folder).to_pandas()
        by_turn, by_tool = tables(measures)
        scored = turns.dropna(subset="information_gain").groupby("turn")["information_gain"]
        assert [row[:3] for row in by_turn.rows] == [
            [str(turn), str(len(gains)), signed(gains.mean())] for turn, gains in scored
        ]
        (tool,) = by_tool.rows
        calls = [call for calls in turns["calls"] for call in calls]
        assert tool[:3] == ["search", str(len(calls)), percent(np.mean([call["failed"] for call in calls]))]
        assert tool[3] == seconds(np.median([call["seconds"] for call in calls]))
        first = turns[turns["turn"] == 0]
        assert f"answered {percent((first['stop_reason'] == 'answered').mean())}" in stop_reasons(measures)


class TestRollouts:
    def test_all_of_them_in_order(self, folder):
        (run,), (measures,) = read(folder)
        rollouts = list(read_rollouts(run, choose_groups(measures)))
        assert len(rollouts) == 64
        places = [tuple(turns[0][name] for name in ("batch", "group", "generation")) for turns, _ in rollouts]
        assert places == sorted(places)
        assert sum(len(one.turns) for _, one in rollouts) == len(measures.turns)
        assert rollouts[0][1].question.startswith("Question: What is the capital")

    def test_a_limit_takes_whole_groups_from_all_of_the_run(self, folder):
        (run,), (measures,) = read(folder)
        rollouts = list(read_rollouts(run, choose_groups(measures, 17)))
        assert len(rollouts) == 16
        assert {turns[0]["batch"] for turns, _ in rollouts} == {0, 1}
        assert len(choose_groups(measures, 1)) == 1

    def test_question(self):
        prompt = "<|im_start|>user\nWhere is  Lyon?<|im_end|>\n<|im_start|>assistant\n"
        assert question(prompt, len("<|im_start|>user\n"), len("\n<|im_start|>assistant\n")) == "Where is Lyon?"
        assert question("same", 4, 4) == "same"
        assert question("<|im_start|>user\n<|vision_start|>\ufffc<|vision_end|>Where?") == "user Where?"
        assert question("Is \ufffc red?") == "Is [image] red?"

    def test_prompts_of_which_some_have_pictures_begin_alike(self, tmp_path):
        parts = ["<user>\nAnswer.\n", "Where?\n<model>\n"]
        pictured = ["<user>\n\n\n<image>\ufffc</image>\n\nAnswer.\n", "Who?\n<model>\n"]
        row = {"step": 0, "batch": 0, "generation": 0, "turn": 0, "num_turns": 1, "text": "", "num_tokens": 0}
        row |= {"num_observation_tokens": 0, "calls": [], "estimator_columns": {}, "reward": 0.0, "rewards": {}}
        rows = [row | {"group": group, "prompt": "".join(prompt)} for group, prompt in enumerate((parts, pictured))]
        RecordStore(tmp_path / FOLDER, 2**40).append(rows)
        shown = [rollout.question for _, rollout in read_rollouts(read_runs([tmp_path])[0], {(0, 0), (0, 1)})]
        assert shown == ["Where?", "Who?"]
        assert len(question("x" * 999, 0, 0)) == 240


class TestPage:
    def test_it_asks_for_nothing_and_holds_its_data(self, folder, tmp_path):
        runs, measures = read(folder)
        assert write_page(runs, measures, tmp_path / "report.html") == 64
        page = (tmp_path / "report.html").read_text()
        assert not re.search(r"""(?:src|href)=["'](?!#)""", page.partition('id="data-overview"')[0])
        assert "sourceMappingURL" not in page
        assert page.count("<script") == page.count("</script>")
        parts = dict(re.findall(r'<script type="text/plain" id="data-([\w-]+)">([\w+/=]+)</script>', page))
        index = json.loads(gzip.decompress(base64.b64decode(parts["index"])))
        assert len(index["question"]) == 64
        texts = json.loads(gzip.decompress(base64.b64decode(parts["part-0"])))
        assert texts["rollouts"][0]["turns"][0]["text"]

    def test_the_same_run_gives_the_same_page(self, folder, tmp_path):
        runs, measures = read(folder)
        for name in ("one", "two"):
            write_page(runs, measures, tmp_path / name)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "run", "two"]

    def test_a_name_that_is_no_unicode(self, folder, tmp_path):
        state = {"global_step": 99, "log_history": [{"step": 1, "rewards/\ud800/mean": 1.0}]}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        assert main(["report", str(folder), "--output", str(tmp_path / "report.html")]) == 0
        assert main(["report", str(folder), "--text", "--png", str(tmp_path / "plots")]) == 0


class TestTerminal:
    def printed(self, *folders):
        console = Console(file=StringIO(), width=120)
        show(*read(*folders), console)
        return console.file.getvalue()

    def test_essentials(self, folder):
        text = self.printed(folder)
        for part in (
            "How it went",
            "Credit by turn index",
            "Tools",
            "Rollouts ended: answered",
            "Best rollout",
            "Worst",
        ):
            assert part in text
        assert "reward 1.1 · exact_match 1 · format 0.1" in text
        assert "[/" not in text

    def test_equal_rewards_have_neither_best_nor_worst(self, tmp_path):
        folder = synthetic.write_run(tmp_path / "run", rollouts=32)
        rows = [row | {"reward": 1.0, "rewards": dict(row["rewards"])} for row in read_turns(folder).to_pylist()]
        for file in (folder / FOLDER).iterdir():
            file.unlink()
        RecordStore(folder / FOLDER, 2**30).append(rows)
        text = self.printed(folder)
        assert "A rollout; all have this reward: Question" in text
        assert "Best" not in text and "Worst" not in text

    def test_grpo_has_dashes(self, tmp_path):
        text = self.printed(synthetic.write_run(tmp_path / "run", rollouts=32, estimator="grpo"))
        assert "the estimator measures none." in text
        assert "nan" not in text.lower().replace("finance", "")

    def test_columns_of_the_estimator(self, tmp_path):
        text = self.printed(synthetic.write_run(tmp_path / "run", rollouts=32, estimator="bonus"))
        assert "turn_bonus +0.25" in text
        assert re.search(r"turn_bonus, all turns +[▁-█]", text)
        assert "turn_bonus" not in self.printed(synthetic.write_run(tmp_path / "other", rollouts=32))

    def test_a_curve_in_one_line(self):
        series = Series(0, "", list(range(100)), [float(x) for x in range(100)])
        assert (len(sparkline(series)), sparkline(series)[0], sparkline(series)[-1]) == (WIDTH, BLOCKS[0], BLOCKS[-1])
        assert sparkline(Series(0, "", [1, 2], [3.0, 3.0])) == BLOCKS[0] * 2

    def test_control_characters_do_not_reach_it(self):
        assert plain("a\x1b[2Jb\u202ec\nd\te") == "a�[2Jb�c\nd\te"


class TestCommand:
    def test_page_by_default(self, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["report", "run"]) == 0
        assert capsys.readouterr().out.startswith("report.html: 64 rollouts of 1 run, ")
        assert (tmp_path / "report.html").exists()

    def test_text_and_plots_without_a_page(self, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["report", "run", "--text", "--png", "plots"]) == 0
        assert "How it went" in capsys.readouterr().out
        assert not (tmp_path / "report.html").exists()
        files = {file.stem for file in (tmp_path / "plots").iterdir()}
        assert files == set(charts_of(folder))
        assert all(file.stat().st_size > 5000 for file in (tmp_path / "plots").iterdir())

    def test_plots_of_hostile_names(self, tmp_path):
        folders = [synthetic.write_run(tmp_path / name, rollouts=32) for name in ("_$\\frac{$", "{x}%s")]
        assert main(["report", *map(str, folders), "--png", str(tmp_path / "plots")]) == 0

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["nowhere"], "nowhere is no folder: name the output_dir of a run."),
            (["empty"], "empty holds nothing of a run: no turns/*.parquet"),
            (["run", "run"], "run is named twice"),
            (["run", "--limit", "0"], "limit=0 must be at least 1."),
            (["run", "--pictures_mb", "-1"], "pictures_mb=-1.0 must be at least 0."),
            (["run", "--limit", "x"], "invalid int value: 'x'"),
            ([], "the following arguments are required: RUN"),
        ],
    )
    def test_bad_usage_is_one_line(self, folder, words, said, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    def test_records_of_something_else(self, folder, capsys):
        file = next((folder / FOLDER).iterdir())
        pd.DataFrame({"x": [1]}).to_parquet(file)
        assert main(["report", str(folder)]) == 2
        assert f"{file} holds no turn records" in capsys.readouterr().err


def test_infinite_numbers_are_left_out(folder):
    """As transformers writes the norm of a gradient that overflowed."""
    synthetic.write_run(folder, rollouts=32)
    state = folder / "trainer_state.json"
    history = [{"step": step, "grad_norm": norm} for step, norm in enumerate((1.0, float("inf"), 2.0))]
    state.write_text(json.dumps({"global_step": 3, "log_history": history}))
    store = RecordStore(folder / FOLDER, 2**30)
    rows = [
        row | {"step": 99, "batch": 99, "reward": float("inf"), "advantage": float("-inf")}
        for row in read_turns(folder).to_pylist()
    ]
    store.append([row | {"rewards": dict(row["rewards"])} for row in rows])
    assert main(["report", str(folder), "--output", str(folder / "report.html")]) == 0
    gradient = charts_of(folder)["gradient"]
    assert gradient.series[0].y == [1.0, 2.0]


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch, capsys):
    synthetic.write_run(tmp_path / "outputs" / "run")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    names = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(example, names)
    assert "| turn | advantage |" in capsys.readouterr().out
    assert {file.name for file in tmp_path.glob("*.png")} == {"credit.png", "curves.png"}


def test_axes_of_plots(folder, tmp_path, monkeypatch):
    """Steps are whole, and shares begin at 0."""
    drawn = {}
    draw = plots.draw
    monkeypatch.setattr(
        plots, "draw", lambda axis, chart, names: drawn.update({chart.key: axis}) or draw(axis, chart, names)
    )
    charts = charts_of(folder)
    plots.write_plots([charts["reward"], charts["failures"]], ["run"], tmp_path)
    assert all(place == int(place) for place in drawn["reward"].get_xticks())
    assert drawn["reward"].get_ylim()[0] > 0 == drawn["failures"].get_ylim()[0]


def test_plots_leave_the_backend_of_a_notebook_alone(folder, tmp_path):
    """Which would show none of its own figures afterwards."""
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        plots.write_plots([charts_of(folder)["reward"]], ["run"], tmp_path)
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)


def test_evaluation_stands_out(tmp_path):
    """Its lines are whole, and those of training beside it lighter."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        log = [{"step": 1, "reward": 0.2, "entropy": 1.0}, {"step": 1, "eval_reward": 0.1}]
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    charts = charts_of(tmp_path / "a")
    assert [(look.dash, look.is_light) for look in looks(charts["reward"], ["a"])] == [(0, True), (0, False)]
    assert [look.is_light for look in looks(charts["entropy"], ["a"])] == [False]
    two = charts_of(tmp_path / "a", tmp_path / "b")["reward"]
    assert [(look.label, look.dash, look.is_light) for look in looks(two, ["a", "b"])] == [
        (f"{run} · {what}", dash, is_light)
        for run in ("a", "b")
        for what, dash, is_light in (("training", 0, True), ("evaluation", 1, False))
    ]
