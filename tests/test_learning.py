"""`benchmarks/learning`: the tasks, a small run, the grid and its tables."""

import json
import random
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from a2tgpo_trl.credit import Turns
from a2tgpo_trl.rollout import Rollout, Turn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "learning"))

world, task, world_task, facts, warm_start, run, grid, tables = map(
    import_module, ("world", "task", "world_task", "facts", "warm_start", "run", "grid", "tables")
)
WorldTask, FactsTask = world_task.WorldTask, facts.FactsTask
SMALL = {"prompts": 2, "group": 4, "updates": 2, "batches": 2, "every": 1, "questions": 4}


def test_facts_are_the_same_when_asked_again_and_stay_in_reach():
    facts = world.World(5)
    for entity in range(0, world.ENTITIES, 7):
        for relation in range(world.RELATIONS):
            found = facts.fact(entity, relation)
            assert found == world.World(5).fact(entity, relation) and found in world.candidates(entity, relation)
    assert [facts.fact(e, 0) for e in range(20)] != [world.World(6).fact(e, 0) for e in range(20)]


@pytest.mark.parametrize(("hops", "widths"), [(2, [160, 8]), (3, [160, 40, 8]), (4, [160, 160, 40, 8])])
def test_an_informative_chain_narrows_the_answer_and_another_does_not(hops, widths):
    for informative, expected in ((True, widths), (False, [160] * hops)):
        question = world.ask(random.Random(0), hops, informative)
        path = question.path(world.World(1))
        found = [world.candidates(e, r) for e, r in zip(path, question.relations, strict=False)]
        assert [len(reachable) for reachable in found] == expected
        assert all(fact in reachable for fact, reachable in zip(path[1:], found, strict=True))
        assert len(set(question.relations)) == hops


def test_scripted_traces_end_in_the_true_answer_and_stop_early_at_times():
    chance, facts = random.Random(0), world.World(3)
    lengths = set()
    for _ in range(200):
        question = world.ask(chance, 2, True)
        asked, answer = world.trace(chance, facts, question, task.Habits(), lambda query: facts.fact(*query))
        assert answer == question.path(facts)[-1]
        lengths.add(len(asked))
    assert {0, 1, 2, 3} <= lengths


def test_training_and_held_out_questions_start_from_other_entities():
    def starts(held_out):
        rows = WorldTask(2).rows(1, 0, 300, held_out)
        return {row["prompt"].split()[1] for row in rows}

    assert starts(True) and not starts(True) & starts(False)


def test_the_tokenizer_has_a_token_a_word():
    tokenizer = WorldTask.make_tokenizer()
    words = "<search> e1 r2 </search> <result>e1 r2 e159</result>"
    ids = tokenizer(words)["input_ids"]
    answer = task.ANSWER_TEMPLATE.format(answer="e1")
    assert len(tokenizer(answer)["input_ids"]) == task.TOKENS_OF_AN_ANSWER
    assert len(tokenizer) == 186 and len(ids) == 9 and tokenizer.unk_token_id not in ids


def test_noise_hides_results_and_flips_rewards():
    facts = world.World(1)
    quiet, noisy = WorldTask(2), WorldTask(2, result_noise=1.0, reward_noise=1.0)
    assert noisy.make_search(1, 0)("e1 r2") == "none"
    assert quiet.make_search(1, 0)("e1 r2") == f"e1 r2 e{facts.fact(1, 2)}"
    right = {"completions": ["<answer> e1 </answer>"], "answer": ["e1"]}
    assert quiet.make_outcome(0)(**right) == [1.0] and noisy.make_outcome(0)(**right) == [0.0]


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    def random_model(task, seed):
        folder = tmp_path / "model"
        warm_start.make_model(type(task), seed).save_pretrained(folder)
        return folder

    monkeypatch.setattr(run, "warm_start", random_model)
    monkeypatch.setattr(grid, "prepare", print)


@pytest.mark.parametrize("method", ["grpo", "a2tgpo"])
@pytest.mark.parametrize("asked", [WorldTask(2), FactsTask()])
def test_a_run_measures_every_batch_and_the_curve(untrained, asked, method):
    result = run.Run(asked, run.Size(**SMALL), method, 1001).execute()
    assert [point["batch"] for point in result["curve"]] == [0, 1, 2]
    assert len(result["batches"]) == 2 and result["optimizer_steps"] == 4 and 0 <= result["greedy_exact_match"] <= 1
    for batch in result["batches"]:
        assert 0 <= batch["dead_groups"] <= 1 and batch["generated_tokens"] > 0 and "entropy" in batch
        assert ("belief_at_prompt" in batch) == (method == "a2tgpo") == (batch["scored_tokens"] > 0)
    assert json.loads(json.dumps(result)) == result


def test_the_summary_of_a_run_has_no_metrics_without_values(untrained, monkeypatch):
    """`BatchProgress`, which confirmations have, adds up what it is shown."""
    rows = []

    class Trainer(run.MeasuredTrainer):
        def log(self, logs, start_time=None):
            super().log(logs, start_time)
            rows.append(self.state.log_history[-1])

    monkeypatch.setattr(run, "MeasuredTrainer", Trainer)
    run.Run(WorldTask(2), run.Size(**SMALL), "a2tgpo", 1001).execute()
    assert "train_runtime" in rows[-1] and not [name for name, value in rows[-1].items() if value is None]


def test_the_same_seed_gives_the_same_run(untrained):
    first, second = (run.Run(WorldTask(2, result_noise=0.3), run.Size(**SMALL), "a2tgpo", 7).execute() for _ in "ab")
    assert first["batches"] == second["batches"] and first["curve"] == second["curve"]


def small_grid(folder: Path, **changes) -> Path:
    content = {
        "options": {},
        "sizes": {"small": SMALL},
        "tasks": {"short": {"size": "small", "hops": 2}},
        "cells": {"grpo_turn": {"method": "grpo", "options": {"importance_sampling_level": "turn"}}},
        "experiments": [{"tasks": ["short"], "cells": ["grpo_turn"], "seeds": [1, 2]}],
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_what_a_job_writes_is_left_out_when_the_grid_goes_on(untrained, tmp_path, capsys):
    (first, second), out = grid.read_grid(small_grid(tmp_path)), tmp_path / "results"
    grid.execute((first, first.path(out)))
    assert [p.name for p in out.rglob("*.*")] == ["1.json"]
    grid.main([str(small_grid(tmp_path)), "--out", str(out), "--list"])
    done, left = capsys.readouterr().out.strip().splitlines()
    assert done == f"{first.path(out)} done" and left.strip() == str(second.path(out))
    second.path(out).write_text("{}")
    assert grid.main([str(small_grid(tmp_path)), "--out", str(out), "--workers", "1"]) == 0
    assert "2 runs, 2 of them done" in capsys.readouterr().out


def test_runs_of_other_settings_are_not_mixed(untrained, tmp_path, capsys):
    first, out = grid.read_grid(small_grid(tmp_path))[0], tmp_path / "results"
    grid.execute((first, first.path(out)))
    changed = small_grid(tmp_path, options={"learning_rate": 1e-5})
    assert grid.main([str(changed), "--out", str(out)]) == 2
    assert "1.json was run with" in capsys.readouterr().err


def test_contexts_are_counted_once_and_shared_turns_too():
    """Two rollouts of a tree share a turn and its observation: the prompt, that, and what one of them read then."""
    turn, other = Turn([1, 2], {}, observation_ids=[3]), Turn([4], {}, observation_ids=[5])
    rollouts = [Rollout([9], [turn, other]), Rollout([9], [turn, Turn([6], {})], num_shared_turns=1)]
    contexts = {context for rollout in rollouts for context in run._probed_contexts(rollout)}
    assert contexts == {(9,), (9, 1, 2, 3), (9, 1, 2, 3, 4, 5)}
    assert sum(len(turn.ids) for rollout in rollouts for turn in rollout.written_turns) == 4


def test_a_cell_that_cannot_run_is_told_and_leaves_no_file(untrained, tmp_path):
    cells = {"grpo_turn": {"method": "grpo", "options": {"turn_advantage_coef": 1.0}}}
    planned = grid.read_grid(small_grid(tmp_path, cells=cells))[0]
    _, _, said = grid.execute((planned, planned.path(tmp_path / "results")))
    assert said.startswith("failed: ValueError: turn_advantage_coef") and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": {"other": {"method": "grpo"}}}, "'grpo_turn' is not in the section 'cells'. There are other."),
        ({"cells": {"grpo_turn": {"methods": "grpo"}}}, "cell 'grpo_turn' has 'methods'. A cell has a method"),
        ({"tasks": {"short": {"size": "big", "hops": 2}}}, "'big' is not in the section 'sizes'. There are small."),
    ],
)
def test_a_bad_grid_gives_one_error(tmp_path, capsys, changes, message):
    assert grid.main([str(small_grid(tmp_path, **changes))]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_the_registered_grid_can_be_read():
    planned = grid.read_grid(grid.HERE / "grid.yaml")
    assert {run.seed for run in planned} == set(range(1, 13)) and max(run.seed for run in planned) < 1000


def made(seed: int, *curve: float, cell: str = "a", tokens: int = 100) -> dict:
    batches = [{"dead_groups": 0.5, "generated_tokens": tokens, "scored_tokens": 30, "turns": 2.0}]
    return {
        "task": "t",
        "cell": cell,
        "seed": seed,
        "curve": [{"batch": 2 * i, "exact_match": value} for i, value in enumerate(curve)],
        "batches": batches * 2 * (len(curve) - 1),
        "seconds": {"processor": 9.0},
    }


def test_areas_and_paired_intervals_by_hand():
    assert tables.area(made(1, 0.0, 0.5, 1.0)) == pytest.approx(0.5)
    assert tables.batches_to(made(1, 0.0, 0.5, 1.0), 0.5) == 2 and tables.batches_to(made(1, 0.0, 0.1), 0.5) is None
    ours = {seed: made(seed, value, value) for seed, value in ((1, 0.4), (2, 0.6), (3, 0.8), (9, 0.0))}
    base = {seed: made(seed, value, value) for seed, value in ((1, 0.3), (2, 0.4), (3, 0.5))}
    mean, half = tables.paired(ours, base)  # differences .1, .2, .3: mean .2, deviation .1, t(2) = 4.302653
    assert mean == pytest.approx(0.2) and half == pytest.approx(4.302653 * 0.1 / 3**0.5)


def test_areas_at_equal_tokens_end_where_the_thriftier_run_does():
    thrifty, other = made(1, 0.0, 0.4, 0.8, tokens=50), made(1, 0.0, 0.4, 0.8)
    assert tables.area_to(other, 400) == tables.area(other)
    assert tables.area_to(other, 300) == pytest.approx((200 * 0.2 + 100 * 0.5) / 300)
    # The first 200 tokens: 0.4 on the mean of its whole curve, against half of the other's
    assert tables.difference_at_equal_tokens(thrifty, other) == pytest.approx(0.4 - 0.2)


def cells(**values) -> dict:
    return {name: {i: made(i, v, v, cell=name) for i, v in enumerate(of, start=1)} for name, of in values.items()}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.60, 0.62, 0.61], "win"),  # + 0.10 on 0.51
        ([0.53, 0.55, 0.54], "better"),
        ([0.52, 0.50, 0.53], "no difference"),
        ([0.40, 0.42, 0.41], "worse"),
    ],
)
def test_a_win_is_told_against_the_better_baseline(values, said):
    runs = cells(grpo_token=[0.3, 0.3, 0.3], grpo_turn=[0.50, 0.52, 0.51], a=values)
    assert tables.better_baseline(runs) == "grpo_turn"
    assert tables.relative_gain(runs, "grpo_turn") is None and tables.relative_gain(cells(a=[0.1]), "a") is None
    mean, _ = tables.relative_gain(runs, "a")
    assert mean == pytest.approx((sum(values) / 3 - 0.51) / 0.51)
    assert tables.verdict(tables.relative_gain(runs, "a")) == said


def test_only_finished_cells_are_judged():
    runs = cells(grpo_turn=[0.5] * 12, a=[0.6] * 12, b=[0.6] * 11)
    assert tables.overview({"t": runs})[-2:] == ["| a | **+20% ± 0%** ▲ |", "| b | +20%, 11 of 12 seeds |"]


def test_a_cell_is_compared_over_the_seeds_that_both_have():
    runs = cells(grpo_turn=[0.4, 0.8], a=[0.5])
    assert tables.relative_gain(runs, "a")[0] == pytest.approx(0.25)  # of 0.4, the first seed's


def test_a_page_without_marks_is_an_error():
    with pytest.raises(ValueError, match="The page must have"):
        import_module("page").replaced("no marks", "text")


def test_the_page_in_the_docs_is_of_the_runs_in_the_repository():
    pytest.importorskip("matplotlib")
    page = import_module("page")
    written = page.content(tables.load(tables.HERE / "results"), 0.5, "results")
    assert f"{page.BEGIN}\n\n{written}\n\n{page.END}" in page.PAGE.read_text()


def test_the_control_gives_tool_turns_twice_the_reward():
    turns = Turns(
        outcome=torch.tensor([0.5, -0.5]),
        rewards=torch.tensor([1.0, 0.0]),
        num_turns=torch.tensor([3, 1]),
        num_tool_turns=torch.tensor([2, 0]),
        num_generations=2,
        signals={},
    )
    credit = import_module("controls").OutcomeCredit().credit(turns, None)
    assert credit.advantages.tolist() == [[2.5, 2.5, 0.5], [-0.5, -0.5, -0.5]]
    of_rollouts = import_module("controls").OutcomeCreditOfRollouts().credit(turns, None)
    assert of_rollouts.advantages.tolist() == [2.5, -0.5]


def write(folder: Path, runs: dict) -> None:
    for cell, of in runs.items():
        for seed, content in of.items():
            path = folder / "t" / cell / f"{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))


def test_tables_of_files(tmp_path, capsys):
    write(tmp_path, cells(a=[0.6, 0.6], grpo_turn=[0.4, 0.4]))
    tables.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| cell | t |" and lines[4] == "| a | +50%, 2 of 12 seeds |"
    results = lines[lines.index("### t") + 2 :]
    assert results[3].startswith(
        "| a | 2 | 0.600 ± 0.000 | – | +0.200 ± 0.000 | +0.200 ± 0.000 | – | 0.600 ± 0.000 | – | – |"
    )
    assert results[3].endswith("| 0 (2 of 2) |")
    assert results[8] == "| a | 200 | 60 | 9 | 0.50 | – | – | – | – | – | – | 2.00 → 2.00 |"


def test_a_confirmation_has_the_size_of_the_demo(capsys, tmp_path):
    confirm = import_module("confirm")
    planned = grid.read_grid(grid.HERE / "confirm.yaml")
    assert len(planned) == 15 and confirm.check_size(planned[0].settings["size"]) is None
    text = (grid.HERE / "confirm.yaml").read_text().replace("group: 8", "group: 4")
    (tmp_path / "other.yaml").write_text(text)
    assert confirm.main([str(tmp_path / "other.yaml"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: The demo has group: 8, and the grid says 4.\n"


def test_greedy_answers_are_compared_where_both_have_them():
    runs = cells(a=[0.6, 0.6, 0.6], grpo_turn=[0.4, 0.4, 0.4])
    for seed, exact in ((1, 0.75), (2, 1.0)):
        runs["a"][seed]["greedy_exact_match"] = exact
        runs["grpo_turn"][seed]["greedy_exact_match"] = 0.5
    runs["a"][3]["greedy_exact_match"] = 0.0
    row = tables.results(runs, 0.5)[2]
    mean, half = tables.interval([0.25, 0.5])
    assert row.startswith("| a | 3 |") and f"| {mean:+.3f} ± {half:.3f} |" in row


def test_seeds_take_the_worlds_from_the_first():
    planned = grid.read_grid(grid.HERE / "fresh.yaml")
    assert {seed: run.world_of(seed, planned[0].settings["first_world"]) for seed in (13, 14, 15)} == {
        13: 5,
        14: 6,
        15: 4,
    }
    assert sorted({world for _, world in grid.warm_starts(planned)}) == [4, 5, 6]


def test_the_page_gets_tables_and_pictures_between_its_marks(tmp_path):
    pytest.importorskip("matplotlib")
    page = import_module("page")
    write(tmp_path / "runs", cells(a=[0.6, 0.7], grpo_turn=[0.4, 0.4]))
    (tmp_path / "results.md").write_text(f"Before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    for _ in "ab":  # the second time over what the first wrote
        page.main(["--runs", str(tmp_path / "runs"), "--page", str(tmp_path / "results.md")])
        text = (tmp_path / "results.md").read_text()
        assert text.startswith("Before\n") and text.endswith("\nafter\n") and "old" not in text
        assert text.count("### t") == 1 and "![t](results/t.png)" in text
    assert (tmp_path / "results" / "t.png").stat().st_size > 1000


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    curves = import_module("curves")
    curves.draw("t", cells(a=[0.5, 0.7], grpo_turn=[0.4, 0.4]), tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 1000
    assert curves.bands([made(1, 0.0, 0.5), made(2, 0.0, 0.7)])[1] == pytest.approx([0.0, 0.6])


@pytest.mark.parametrize(("asked", "prompt"), [(WorldTask, 5), (FactsTask, 15)])
def test_labels_of_a_warm_start_leave_the_prompt_out(asked, prompt):
    settings = warm_start.WarmStart({2: task.Habits(), 3: task.Habits()}, steps=1, traces=20)
    (parts,) = warm_start.batches(asked, settings, 0)
    assert [len(ids) for ids, _ in parts] == [16, 4]
    for ids, labels in parts:
        assert ids.shape == labels.shape and (labels[:, :prompt] == task.IGNORED).all()
        learned = labels != task.IGNORED
        assert learned.any(dim=1).all() and torch.equal(ids[learned], labels[learned])


def test_parts_of_a_step_have_the_loss_of_the_whole():
    settings = warm_start.WarmStart({3: task.Habits()}, steps=1, traces=20)
    (parts,), model = warm_start.batches(WorldTask, settings, 0), warm_start.make_model(WorldTask, 0)
    whole = torch.cat([torch.nn.functional.pad(labels, (0, 64 - labels.shape[1]), value=-100) for _, labels in parts])
    ids = torch.cat([torch.nn.functional.pad(ids, (0, 64 - ids.shape[1])) for ids, _ in parts])
    number = sum((labels[:, 1:] != task.IGNORED).sum() for _, labels in parts)
    found = sum(warm_start.loss_of(model, *part) for part in parts) / number
    assert found.item() == pytest.approx(model(input_ids=ids, labels=whole).loss.item(), rel=1e-5)


def test_a_warm_start_is_trained_again_when_its_task_changes_and_not_for_another(monkeypatch):
    def folders():
        return [warm_start.folder_of(asked, 1) for asked in (WorldTask(2), FactsTask())]

    of_world, of_facts = folders()
    source = warm_start.inspect.getsource
    monkeypatch.setattr(
        warm_start.inspect, "getsource", lambda part: source(part) + ("# changed" if part is facts else "")
    )
    assert folders()[0] == of_world and folders()[1] != of_facts
    assert warm_start.folder_of(FactsTask(), 2) != folders()[1]


def test_the_facts_tokenizer_knows_all_words_and_has_a_token_a_name():
    known, tokenizer = facts.facts(), FactsTask.make_tokenizer()
    texts = [passage["text"] for passage in known.search.passages] + [q["question"] for q in known.questions]
    texts += [title for q in known.questions for title in q["supports"]] + [known.search.search(""), "zz"]
    *ids, unknown = tokenizer(texts)["input_ids"]
    assert unknown == [tokenizer.unk_token_id] and not any(tokenizer.unk_token_id in row for row in ids)
    for question in known.questions:
        answer = task.ANSWER_TEMPLATE.format(answer=question["answer"][0])
        assert len(tokenizer(answer)["input_ids"]) == task.TOKENS_OF_AN_ANSWER


def test_what_the_facts_model_writes_is_plain_text_that_searches():
    known = facts.facts()
    for question in known.questions:
        for title in question["supports"]:
            written = known.tokenizer.decode(known.tokenizer(f"<search>{title}</search>")["input_ids"][1:-1])
            assert known.look_up(written)[0][0] == title


def test_a_search_of_facts_returns_a_distractor_beside_the_right_passage():
    search = FactsTask().make_search(1, 0)
    assert (
        search("Currency of Norway")
        == "The currency of Norway is the Norwegian Krone.\nThe capital of Norway is Oslo."
    )


def test_held_out_facts_are_about_other_countries():
    countries = {q["question"]: q["country"] for q in facts.facts().questions}

    def about(world, held_out):
        rows = FactsTask().rows(world, 0, 300, held_out)
        return {countries[row["prompt"]] for row in rows}

    assert about(1, True) and not about(1, True) & about(1, False)
    assert about(1, True) != about(2, True)


def test_scripted_traces_of_facts_follow_what_was_found():
    """With right queries only, the supports are searched in their order, and the answer stands in the last result."""
    known = facts.facts()
    habits = task.Habits(stop=0, wrong=0, repeat=0, needless=0)
    for question in known.questions[:200]:
        *turns, (answer, last) = facts.trace(random.Random(0), question, habits, known.look_up)
        assert [turn for turn, _ in turns] == [f"<search>{title}</search>" for title in question["supports"]]
        assert question["answer"][0] in turns[-1][1] and answer == f"<answer>{question['answer'][0]}</answer>"
        assert last is None
    traces = [list(facts.trace(random.Random(i), question, task.Habits(), known.look_up)) for i in range(200)]
    assert {len(turns) for turns in traces} >= {1, 2, 3, 4}


def test_renaming_gives_each_name_of_a_trace_another_of_its_kind():
    known, chance = facts.facts(), random.Random(0)
    kinds = {known.tokenizer.convert_tokens_to_ids(name): kind for name, kind in known.kinds.items()}
    renaming = facts.Renaming(known)
    for passage in known.search.passages[:200]:
        ids = known.tokenizer(passage["text"])["input_ids"] * 2
        new = renaming.draw(chance, ids)
        assert new.keys() == kinds.keys() & set(ids) and len(set(new.values())) == len(new)
        assert all(kinds[old] == kinds[other] for old, other in new.items())
    everything = renaming.draw(chance, list(kinds))
    assert sorted(everything) == sorted(everything.values()) and everything != renaming.draw(chance, list(kinds))


def test_an_answer_that_was_read_has_the_name_that_was_read():
    settings = warm_start.WarmStart({hops: task.Habits(0, 0, 0, 0) for hops in (2, 3)})
    traces = FactsTask.traces(settings, 1)
    for ids, labels in (next(traces) for _ in range(50)):
        *read, _, answer, _ = ids
        assert answer in read and labels[-3:] == ids[-3:]
