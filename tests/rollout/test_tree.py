"""Trees of rollouts: leaves that begin as others did, on a tiny model that calls tools by chance, with both protocols."""

import copy
import math
from itertools import groupby
from random import Random

import pytest
import torch
from datasets import Dataset

import chance
import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.batch import _weights
from a2tgpo_trl.credit import Turns
from a2tgpo_trl.functional import leaves_below, observation_ends
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.rollout import Rollout, StopReason, TagProtocol, ToolCall, ToolResult, Turn
from a2tgpo_trl.rollout.tree import Branch, TreePlan, choose, fork, number_nodes
from conftest import CHAT_ROWS, chat_correct, chat_rollouts

GROUP = 8
TREE = {"tree_chains": 3, "tree_expansions": 2}  # rounds of 2, 2 and 1


def ask(text: str) -> str:
    """
    Look something up.

    Args:
        text: What to look for.
    """
    return f"It is {len(text)}."


class AskByChance:
    """With text tags, a random model never writes one: every turn whose tokens have an odd sum calls `ask`."""

    def read_turn(self, ids, prefix, schemas):
        message = {"role": "assistant", "content": self.tokenizer.decode(ids)}
        return message, [ToolCall("ask", {"text": "x" * (sum(ids) % 30)})] if sum(ids) % 3 else []


@pytest.fixture
def trainers(config, monkeypatch):
    """`trainers(protocol, **options)`: a trainer of a random model that calls tools by chance; groups of eight."""
    chance.install_parser(monkeypatch)
    monkeypatch.setattr("a2tgpo_trl.rollout.protocols.tags.TagProtocol.read_turn", AskByChance.read_turn)

    def make(protocol="chat", environment_factory=None, reward=None, model=None, tools=None, **options):
        chat = protocol == "chat"
        model = (model or tiny.model()).train()
        model.generation_config.eos_token_id = chance.ENDS
        defaults = dict(
            advantage_estimator="grpo",
            num_generations=GROUP,
            per_device_train_batch_size=2 * GROUP,
            steps_per_generation=1,
            max_completion_length=200,
            max_tool_calling_iterations=3,
            max_turn_tokens=12,
            max_steps=1,
            tool_protocol=protocol,
        )
        given = [chance.look] if chat else [ask]
        return A2TGPOTrainer(
            model=model,
            reward_funcs=reward or (lambda completions, **kwargs: [len(str(text)) % 7 / 7 for text in completions]),
            args=config(**{**defaults, **options}),
            train_dataset=Dataset.from_list(rows(protocol)),
            processing_class=tiny.chat_tokenizer() if chat else tiny.tokenizer(),
            tools=given if environment_factory is None and tools is None else tools,
            environment_factory=environment_factory,
        )

    return make


def rows(protocol="chat"):
    texts = chance.PROMPTS[:2]
    prompts = [[{"role": "user", "content": text}] for text in texts] if protocol == "chat" else texts
    return [{"prompt": prompt, "answer": "Paris"} for prompt in prompts for _ in range(GROUP)]


def rolled_out(trainer, protocol="chat", training=True):
    """The batch of two groups."""
    torch.manual_seed(0)
    trainer.model.train(training)
    return trainer._roll_out(rows(protocol))


def groups(rollouts):
    return [rollouts[first : first + GROUP] for first in range(0, len(rollouts), GROUP)]


def path(rollout, num_turns=None):
    return tuple(turn.node for turn in rollout.turns[:num_turns])


# ---- choosing and forking, by hand


def leaf(*turns):
    """Turns as (node, surprisal); all but the last one call a tool."""
    made = [Turn([1, 2], {"content": "x"}, node=node, surprisal=surprisal) for node, surprisal in turns]
    for turn in made[:-1]:
        turn.calls = [ToolCall("look", {})]
    return Rollout([9], made)


def plan(**options):
    shape = dict(leaves=8, chains=2, expansions=3, by_surprisal=True, sibling_penalty=0.05, rng=Random(0))
    return TreePlan(**{**shape, **options})


def test_rounds_fill_the_group_exactly():
    assert list(map(len, plan(leaves=22, chains=10, expansions=6).rounds)) == [6, 6]
    assert plan(leaves=8, chains=3, expansions=2).rounds == [range(3, 5), range(5, 7), range(7, 8)]
    assert plan(leaves=4, chains=4).rounds == []
    assert plan(leaves=3, chains=2).chain_rows(6) == [0, 1, 3, 4]


def test_the_most_surprising_turns_are_chosen_and_answers_are_not():
    leaves = [leaf((0, 1.0), (1, 2.0), (2, 9.0)), leaf((3, 1.5), (4, 9.0))]
    assert choose(leaves, 3, plan()) == [Branch(0, 1), Branch(1, 0), Branch(0, 0)]  # turns 1, 3 and 0


def test_siblings_count_against_a_turn_and_a_choice_adds_one():
    # 1.0 and 1.01 stand in the same place: 0.95 and 0.96; once one is chosen the other has 0.90, below 0.93 of turn 2
    leaves = [leaf((0, 1.0), (2, 0.93), (8, 9.0)), leaf((1, 1.01), (9, 9.0))]
    assert choose(leaves, 3, plan()) == [Branch(1, 0), Branch(0, 1), Branch(0, 0)]
    assert choose(leaves, 3, plan(sibling_penalty=0.0)) == [Branch(1, 0), Branch(0, 0), Branch(0, 1)]


def test_the_prompt_stands_in_for_missing_turns_and_for_unsurprising_ones():
    lone = leaf((0, 9.0))  # an answer
    assert choose([lone], 3, plan()) == [Branch(0, 0)] * 3
    leaves = [leaf((0, 0.01), (1, 9.0)), leaf((2, 0.04), (3, 9.0))]  # less than the penalty of a sibling
    chosen = choose(leaves, 2, plan())
    assert chosen == [Branch(0, 0)] * 2
    assert choose(leaves, 2, plan(sibling_penalty=0.0)) == [Branch(1, 0), Branch(0, 0)]


def test_a_shared_turn_is_one_candidate():
    first = leaf((0, 5.0), (1, 9.0))
    second = leaf((0, 5.0), (2, 9.0))
    assert choose([first, second], 2, plan(sibling_penalty=0.0)) == [Branch(0, 0), Branch(0, 0)]  # turn 0, the prompt
    assert {fork(first, branch.num_turns).completion_length for branch in choose([first, second], 2, plan())} == {0}


def test_random_choices_come_from_the_seed():
    leaves = [leaf(*((10 * i + k, float(i)) for k in range(4))) for i in range(3)]
    draws = [choose(leaves, 4, plan(by_surprisal=False, rng=Random(seed))) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    equal = [leaf((i, 1.0), (9 + i, 1.0)) for i in range(5)]
    ties = [choose(equal, 1, plan(rng=Random(seed)))[0].leaf for seed in range(20)]
    assert len(set(ties)) > 2


def test_turns_after_a_call_that_timed_out_are_left_as_they_are():
    """What the environment did in the meantime cannot be done again."""
    leaves = [leaf((0, 1.0), (1, 5.0), (2, 9.0))]
    assert choose(leaves, 1, plan()) == [Branch(0, 1)]
    leaves[0].turns[0].results = [ToolResult("look", "too late", failed=True, timed_out=True)]
    assert choose(leaves, 2, plan()) == [Branch(0, 0), Branch(0, 0)]  # the turn that called it, the prompt


def test_unknown_log_probabilities_of_some_tokens_do_not_count():
    """TRL tells NaN of vLLM's as `None`."""
    for logprobs, surprisal in (([-0.5, None, -1.5], 1.0), ([None], None), (None, None)):
        rollout = Rollout([9])
        rollout.add_turn([1, 2, 2], logprobs, TagProtocol(tiny.tokenizer(), [ask]), [])
        assert rollout.turns[0].surprisal == surprisal


def test_leaves_without_a_reward_take_no_share():
    """Turn 0 is shared by all three rollouts, and nothing scored the last one."""
    nodes = torch.tensor([[0, 1], [0, 2], [0, 3]])
    turns = Turns(
        outcome=torch.tensor([1.0, 0.5, 0.0]),
        rewards=torch.tensor([1.0, 0.5, torch.nan]),
        num_turns=torch.full((3,), 2),
        num_tool_turns=torch.ones(3, dtype=torch.long),
        num_generations=3,
        signals={"nodes": nodes},
    )
    assert _weights(turns).tolist() == [[0.5, 1.0], [0.5, 1.0], [1.0, 1.0]]


def test_missing_log_probabilities_are_an_error():
    leaves = [leaf((0, None), (1, None))]
    with pytest.raises(ValueError, match="tree_choice='surprisal' chooses turns by the log-probabilities"):
        choose(leaves, 1, plan())
    assert choose(leaves, 1, plan(by_surprisal=False)) == [Branch(0, 0)]


def test_a_fork_has_the_tokens_before_the_turn_and_nothing_in_common():
    rollout = Rollout([9], logprobs=[-1.0, -2.0, 0.0, -3.0], state="s", stop_reason=StopReason.ANSWERED)
    observed = [{"role": "tool", "content": "y"}]
    rollout.turns = [
        Turn(
            [1, 2],
            {"content": "x"},
            [ToolCall("look", {})],
            [],
            observed,
            [5],
            "t",
            1.5,
            0,
            {"r": 1.0},
            {"advantage": 1.0},
        ),
        Turn([3], {"content": "z"}, node=1),
    ]
    forked = fork(rollout, 1)
    assert forked.prompt_ids == [9]
    assert list(zip(forked.completion_ids, forked.tool_mask, strict=True)) == [(1, 1), (2, 1), (5, 0)]
    assert forked.logprobs == [-1.0, -2.0, 0.0]
    assert (forked.stop_reason, forked.state, forked.num_shared_turns) == (None, "s", 1)
    (turn,) = forked.turns
    assert (turn.state, turn.surprisal, turn.node, turn.rewards, turn.credit) == ("t", 1.5, 0, {}, {})
    before = copy.deepcopy(rollout)
    turn.rewards["r"], turn.credit["advantage"], turn.message["content"] = 7.0, 7.0, "changed"
    turn.observed[0]["content"] = "changed"
    turn.calls.append(ToolCall("look", {}))
    forked.logprobs.append(0.0)
    assert rollout == before
    assert fork(rollout, 0).context_ids == [9] and fork(rollout, 0).logprobs == []


def test_numbers_go_on_where_they_ended():
    first = Rollout([9], [Turn([1], {}), Turn([2], {})])
    number_nodes([first])
    second = fork(first, 1)
    second.turns.append(Turn([3], {}))
    number_nodes([first, second])
    assert (path(first), path(second)) == ((0, 1), (0, 2))


# ---- the loop


@pytest.mark.parametrize("protocol", ["chat", "tags"])
@pytest.mark.parametrize(
    "options", [{}, {"lockstep": True}, {"reuse_history": False}, {"tree_choice": "random"}], ids=str
)
def test_each_prompt_gets_its_leaves(trainers, protocol, options):
    batch = rolled_out(trainers(protocol, **TREE, **options), protocol)
    assert len(batch.rollouts) == 2 * GROUP
    for group in groups(batch.rollouts):
        assert [rollout.num_shared_turns is None for rollout in group] == [True] * 3 + [False] * 5
        assert len({tuple(rollout.prompt_ids) for rollout in group}) == 1
        assert len(set(map(path, group))) == GROUP  # no leaf twice
        assert all(rollout.stop_reason for rollout in group)
        for i, rollout in enumerate(group[3:], 3):
            kept = rollout.num_shared_turns
            source = next(other for other in group[:i] if path(other, kept) == path(rollout, kept))
            assert len(source.turns) > kept
            for ours, theirs in zip(rollout.turns[:kept], source.turns[:kept], strict=True):
                assert (ours.ids, ours.observation_ids, ours.message, ours.calls, ours.results, ours.surprisal) == (
                    (
                        theirs.ids,
                        theirs.observation_ids,
                        theirs.message,
                        theirs.calls,
                        theirs.results,
                        theirs.surprisal,
                    )
                )
                assert ours.credit is not theirs.credit
            new = {turn.node for turn in rollout.turns[kept:]}
            assert new and not new & {node for other in group[:i] for node in path(other)}
    assert any(rollout.num_shared_turns for rollout in batch.rollouts)
    tensors = batch.tensors
    for i, rollout in enumerate(batch.rollouts):
        length = rollout.completion_length
        assert tensors["completion_ids"][i, :length].tolist() == rollout.completion_ids
        assert tensors["tool_mask"][i, :length].tolist() == rollout.tool_mask
        assert len(rollout.logprobs) == length
    assert batch.turns.num_turns.tolist() == [len(rollout.turns) for rollout in batch.rollouts]


def test_calls_of_a_chat_template(build):
    """Read by TRL's own parser, which also gets the rows that are not written yet."""
    options = dict(advantage_estimator="at2po", tree_chains=2, tree_choice="random", per_device_train_batch_size=4)
    trainer = build(
        chat_rollouts(),
        reward=chat_correct,
        dataset=Dataset.from_list(CHAT_ROWS),
        processing_class=tiny.chat_tokenizer(),
        steps_per_generation=1,
        **options,
    )
    trainer.model.train()
    rollouts = trainer._roll_out(CHAT_ROWS[:4]).rollouts
    assert [rollout.num_shared_turns is None for rollout in rollouts] == [True, True, False, False]
    assert len(set(map(path, rollouts))) == 4
    assert all(turn.calls for rollout in rollouts for turn in rollout.turns[:-1])
    assert [rollout.stop_reason for rollout in rollouts] == [StopReason.ANSWERED] * 4


def test_the_mask_of_a_fork(trainers):
    """A rollout that shares its first turn, token by token: the turn, what was read, and the turn of its own."""
    batch = rolled_out(trainers(**TREE))
    i, rollout = next(
        (i, r) for i, r in enumerate(batch.rollouts) if r.num_shared_turns and len(r.turns) == r.num_shared_turns + 1
    )
    pieces = [
        (on, len(ids)) for turn in rollout.turns for on, ids in ((1, turn.ids), (0, turn.observation_ids)) if ids
    ]
    drawn = [(on, len(list(run))) for on, run in groupby(rollout.tool_mask)]
    #   shared turn  observation  own turn
    #   1 1 1 … 1    0 0 … 0      1 1 … 1
    assert drawn == pieces and len(drawn) == 2 * rollout.num_shared_turns + 1
    ids = batch.tensors["turn_ids"][i]
    assert [int(number) for number, _ in groupby(ids.tolist())][: 2 * rollout.num_shared_turns : 2] == list(
        range(rollout.num_shared_turns)
    )


@pytest.mark.parametrize("protocol", ["chat", "tags"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_surprisals_are_those_of_trls_forward(trainers, protocol, temperature):
    trainer = trainers(protocol, temperature=temperature, top_k=20, **TREE)
    batch = rolled_out(trainer, protocol)
    tensors = batch.tensors
    ids = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], dim=1)
    mask = torch.cat([tensors["prompt_mask"], tensors["completion_mask"]], dim=1)
    with torch.no_grad():
        logps, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model.eval(), ids, mask, tensors["completion_ids"].size(1)
        )
    compared = 0
    for i, rollout in enumerate(batch.rollouts):
        for k, turn in enumerate(rollout.turns):
            theirs = logps[i][tensors["turn_ids"][i] == k]
            assert turn.surprisal == pytest.approx(-theirs.mean().item(), abs=1e-4)
            compared += 1
        written = torch.tensor(rollout.tool_mask).bool()
        told = torch.tensor(rollout.logprobs)
        torch.testing.assert_close(told[written], logps[i][: len(told)][written], atol=1e-4, rtol=0)
        assert (told[~written] == 0).all()
    assert compared > 3 * GROUP


def test_log_probabilities_are_kept_for_trees_alone(trainers):
    trainer = trainers(**TREE)
    batch = rolled_out(trainer, training=False)
    assert all(rollout.logprobs is None and rollout.num_shared_turns is None for rollout in batch.rollouts)
    assert all(turn.surprisal is None and turn.node is None for rollout in batch.rollouts for turn in rollout.turns)
    played = trainer.play(rows()[:1], num_generations=4)
    assert all(rollout.num_shared_turns is None for rollout in played)
    assert not any(name.startswith("tree/") for name in trainer._metrics["eval"])


def test_a_prefix_is_not_read_again(trainers):
    """And what goes on from it is, greedily, what goes on from the whole context."""
    # Greedy chains are alike: rounding would decide between their surprisals
    greedy = {"generation_kwargs": {"do_sample": False}, "tree_choice": "random"}
    batches, fed = {}, {}
    for reuse in (True, False):
        trainer = trainers(reuse_history=reuse, **TREE, **greedy)
        batches[reuse] = rolled_out(trainer)
        fed[reuse] = trainer._metrics["train"]["rollout/tokens_fed"][-1] * 2 * GROUP
    for ours, theirs in zip(batches[True].rollouts, batches[False].rollouts, strict=True):
        assert ours.completion_ids == theirs.completion_ids and path(ours) == path(theirs)
    rollouts = batches[True].rollouts
    assert any(rollout.num_shared_turns for rollout in rollouts)
    new = sum(len(turn.ids) + len(turn.observation_ids) for rollout in rollouts for turn in rollout.written_turns)
    # Each token once; beside it the last token before a fork, and of each prompt, in every rollout
    assert fed[True] <= new + sum(len(group[0].prompt_ids) for group in groups(rollouts)) + len(rollouts)
    assert fed[False] > 1.5 * fed[True]


def test_generated_tokens_count_each_turn_once(trainers):
    trainer = trainers(**TREE)
    batch = rolled_out(trainer)
    turns = {(i // GROUP, t.node): len(t.ids) for i, rollout in enumerate(batch.rollouts) for t in rollout.turns}
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["rollout/generated_tokens"] == pytest.approx(sum(turns.values()) / (2 * GROUP))
    shared = [rollout.num_shared_turns for rollout in batch.rollouts]
    forks = [number for number in shared if number is not None]
    assert len(forks) == 10
    assert metrics["tree/fork_depth"] == pytest.approx(sum(forks) / 10)
    assert metrics["tree/leaves_per_chain"] == pytest.approx(16 / sum(not number for number in shared))
    assert metrics["tree/shared_turns"] == pytest.approx(1 - len(turns) / sum(len(r.turns) for r in batch.rollouts))
    chains = trainers()
    played = rolled_out(chains).rollouts
    written = sum(len(turn.ids) for rollout in played for turn in rollout.turns)
    assert chains._metrics["train"]["rollout/generated_tokens"] == [written / (2 * GROUP)]
    assert not any(name.startswith("tree/") for name in chains._metrics["train"])


def test_as_many_chains_as_rollouts_are_rollouts_without_a_tree(trainers):
    trees, chains = rolled_out(trainers(tree_chains=GROUP)), rolled_out(trainers())
    assert [r.completion_ids for r in trees.rollouts] == [r.completion_ids for r in chains.rollouts]
    assert torch.equal(trees.tensors["advantages"], chains.tensors["advantages"])


def test_each_option_changes_the_tree(trainers):
    def shape(**options):
        batch = rolled_out(trainers(**{**TREE, **options}))
        return [path(rollout) for rollout in batch.rollouts]

    trees = [shape(), shape(tree_chains=4), shape(tree_expansions=5), shape(tree_choice="random")]
    trees.append(shape(tree_sibling_penalty=2.0))
    assert len({str(tree) for tree in trees}) == len(trees)
    assert shape() == trees[0]  # a seed gives the same tree


# ---- credit


@pytest.mark.parametrize("estimator", ["grpo", "at2po", "a2tgpo"])
def test_a_shared_turn_counts_once_in_the_loss(trainers, estimator):
    options = dict(advantage_estimator=estimator, importance_sampling_level="turn", loss_type="grpo", **TREE)
    once = rolled_out(trainers(**options))
    per_leaf = rolled_out(trainers(tree_shared_turns="per_leaf", **options))
    assert [path(rollout) for rollout in once.rollouts] == [path(rollout) for rollout in per_leaf.rollouts]
    leaves = leaves_below(once.turns.signals["nodes"], GROUP)
    expected = [[group_path.count(node) for node in path(rollout)] for rollout, group_path in (
        (rollout, [node for other in group for node in path(other)])
        for group in groups(once.rollouts) for rollout in group
    )]  # fmt: skip
    assert [row[: len(r.turns)].tolist() for row, r in zip(leaves, once.rollouts, strict=True)] == expected
    assert leaves.max() > 1
    ids, full = once.tensors["turn_ids"], per_leaf.tensors["advantages"]
    full = full if full.dim() == 2 else full.unsqueeze(1).expand(ids.shape)
    shares = full / leaves.gather(1, ids.clamp(min=0)).clamp(min=1)
    torch.testing.assert_close(once.tensors["advantages"], shares.masked_fill(ids < 0, 0.0))


def test_a_shared_turn_teaches_a_critic_once(trainers):
    once = rolled_out(trainers(advantage_estimator="turn_ppo", **TREE))
    turns = [
        (group, node) for group, rollouts in enumerate(groups(once.rollouts)) for r in rollouts for node in path(r)
    ]
    assert len(turns) > len(set(turns))
    torch.testing.assert_close(once.tensors["num_value_targets"], torch.tensor(float(len(set(turns)))))
    per_leaf = rolled_out(trainers(advantage_estimator="turn_ppo", tree_shared_turns="per_leaf", **TREE))
    assert per_leaf.tensors["num_value_targets"] == len(turns)


def test_a_node_has_one_belief_that_of_its_chain(trainers):
    trainer = trainers(advantage_estimator="a2tgpo", **TREE)
    batch = rolled_out(trainer)
    beliefs, nodes = batch.turns.signals["beliefs"], batch.turns.signals["nodes"]
    found, shared = {}, 0
    for i, rollout in enumerate(batch.rollouts):
        for k in range(rollout.num_tool_turns):
            key = i // GROUP, int(nodes[i, k])
            if key in found and rollout.turns[k].observation_ids:
                assert beliefs[i, k + 1].item() == pytest.approx(found[key], abs=1e-4, nan_ok=True)
                shared += not math.isnan(found[key])
            found[key] = beliefs[i, k + 1].item()
    assert shared > 3
    # The same rollouts as chains: nothing of the tree is left but the tokens
    for rollout in batch.rollouts:
        rollout.num_shared_turns = None
        for turn in rollout.turns:
            turn.node = None
    ends = observation_ends(batch.tensors["completion_mask"], batch.tensors["tool_mask"])
    batch.shared_forward = None
    trainer.signals["beliefs"]._shares_forward = lambda: False
    again = trainer.signals["beliefs"].measure(batch, ends)["beliefs"]
    torch.testing.assert_close(again, beliefs, atol=1e-4, rtol=0, equal_nan=True)


def test_records_draw_the_tree(trainers):
    trainer = trainers(advantage_estimator="at2po", **TREE)
    trainer.train()
    table = read_turns(trainer.args.output_dir).to_pandas()
    assert table["node"].notna().all() and table["surprisal"].notna().all()
    assert (table["depth"] == table["turn"]).all()
    first = table["turn"] == 0
    assert table.loc[first, "parent"].isna().all() and table.loc[~first, "parent"].notna().all()
    for (_, _), group in table.groupby(["batch", "group"]):
        assert group["generation"].nunique() == GROUP
        counts = group.groupby("node").size()
        assert (group["leaves_below"].to_numpy() == counts[group["node"]].to_numpy()).all()
        nodes = {(row.generation, row.turn): row.node for row in group.itertuples()}
        later = group[group["turn"] > 0]
        assert all(row.parent == nodes[row.generation, row.turn - 1] for row in later.itertuples())
        assert (group.groupby("node")[["surprisal", "text", "depth"]].nunique() == 1).all().all()
    assert (table["leaves_below"] > 1).any()


def test_records_without_a_tree(trainers):
    trainer = trainers()
    trainer.train()
    table = read_turns(trainer.args.output_dir).to_pandas()
    assert table[["node", "parent", "depth", "leaves_below", "surprisal"]].isna().all().all()


# ---- environments


class Counter:
    """Answers by how often it was asked."""

    def reset(self, **row) -> None:
        self.looks = 0

    def look(self, key: int) -> str:
        """
        Look something up.

        Args:
            key: Where to look.
        """
        self.looks += 1
        return f"{self.looks}: {key % 5}"


class Mute:
    """An environment that can be asked nothing."""

    def reset(self, **row):
        return None


class Dice(Counter):
    """Answers by chance."""

    thrown = 0

    def look(self, key: int) -> str:
        """
        Look something up.

        Args:
            key: Where to look.
        """
        type(self).thrown += 1
        return f"{type(self).thrown}"


class Greeting(Counter):
    """Says something else to each rollout."""

    number = 0

    def reset(self, **row) -> str:
        self.looks = 0
        type(self).number += 1
        return f"Rollout {self.number}."


def test_environments_are_rebuilt(trainers):
    batch = rolled_out(trainers(environment_factory=Counter, **TREE))
    forked = 0
    for rollout in batch.rollouts:
        contents = [result.content for turn in rollout.turns for result in turn.results]
        assert [int(content.split(":")[0]) for content in contents] == list(range(1, len(contents) + 1))
        forked += bool(rollout.num_shared_turns and any(turn.results for turn in rollout.written_turns))
    assert forked


def test_environments_that_answer_otherwise_are_an_error(trainers):
    trainer = trainers(environment_factory=Dice, **TREE)
    with pytest.raises(
        RuntimeError,
        match=r"tree_chains=3 .* Dice\.look\({'key': \d+}\) gave '\d+' after '\d+' .* leave tree_chains out",
    ):
        rolled_out(trainer)


def test_prompts_that_differ_within_a_group_are_an_error(trainers):
    trainer = trainers(environment_factory=Greeting, **TREE)
    with pytest.raises(RuntimeError, match="the prompts of a group differ"):
        rolled_out(trainer)


def test_standalone_tools_are_not_called_again(trainers, monkeypatch):
    calls = []

    def look(key: int) -> str:
        """
        Look something up.

        Args:
            key: Where to look.
        """
        calls.append(key)
        return "x"

    batch = rolled_out(trainers(tools=[look], **TREE))
    own = [result for rollout in batch.rollouts for turn in rollout.written_turns for result in turn.results]
    assert len(calls) == len(own)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tree_chains=0), "tree_chains must be at least 1 and at most num_generations=8, got 0"),
        (dict(tree_chains=9), "tree_chains must be at least 1 and at most num_generations=8, got 9"),
        (dict(tree_chains=2, tree_expansions=0), "tree_expansions must be at least 1, got 0"),
        (dict(tree_chains=2, tree_choice="best"), "tree_choice must be one of 'surprisal', 'random', got 'best'"),
        (dict(tree_chains=2, tree_shared_turns="twice"), "tree_shared_turns must be one of 'once', 'per_leaf'"),
        (dict(tree_chains=2, tree_sibling_penalty=-1.0), "tree_sibling_penalty .* must be at least 0"),
        (
            dict(tree_chains=2, tree_choice="random", tree_sibling_penalty=1.0),
            "tree_sibling_penalty=1.0 has no effect with tree_choice='random'",
        ),
        (dict(tree_expansions=3), "tree_expansions=3 has no effect without a tree.*or set tree_chains"),
        (dict(tree_choice="random"), "tree_choice='random' has no effect without a tree"),
        (dict(tree_shared_turns="per_leaf"), "tree_shared_turns='per_leaf' has no effect without a tree"),
        (dict(tree_sibling_penalty=0.0), "tree_sibling_penalty=0.0 has no effect without a tree"),
        (dict(tree_chains=2, tool_loop="trl"), "tree_chains=2 has no effect with tool_loop='trl'"),
        (dict(advantage_estimator="at2po"), "advantage_estimator='at2po' credits the turns of a tree, and tree_chains is not set"),
        (
            dict(tree_chains=2, use_transformers_continuous_batching=True),
            "needs the log-probabilities of sampled tokens, which continuous batching does not tell",
        ),
        (
            dict(tree_chains=2, use_transformers_continuous_batching=True, tree_choice="random", advantage_estimator="at2po"),
            "tree_choice='random' with advantage_estimator='at2po' needs the log-probabilities",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_work(config, options, message):
    defaults = dict(
        advantage_estimator="grpo", num_generations=8, per_device_train_batch_size=8, steps_per_generation=1
    )
    with pytest.raises(ValueError, match=message):
        config(**{**defaults, **options})


def test_a_group_on_several_processes_is_refused(config, monkeypatch):
    monkeypatch.setattr(A2TGPOConfig, "world_size", 2)
    with pytest.raises(
        ValueError,
        match=r"each has 4 rows \(per_device_train_batch_size=4 times steps_per_generation=1\), no multiple of num_generations=8",
    ):
        config(
            advantage_estimator="grpo",
            num_generations=8,
            per_device_train_batch_size=4,
            steps_per_generation=1,
            tree_chains=4,
        )


def test_a_tree_of_an_environment_without_tools_is_refused(trainers):
    with pytest.raises(ValueError, match=r"tree_chains=3 .* without tools a rollout is one turn"):
        trainers(environment_factory=Mute, **TREE)


def test_a_tree_without_a_loop_is_refused(build):
    with pytest.raises(ValueError, match=r"tree_chains=2 .* without tools a rollout is one turn"):
        build(advantage_estimator="grpo", tree_chains=2, tools=None)
    with pytest.raises(ValueError, match="tree_chains=2 has no effect on rollouts that a rollout_func plays"):
        build(advantage_estimator="grpo", tree_chains=2, rollout_func=lambda prompts, trainer: {})
