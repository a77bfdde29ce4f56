"""Scores one group of four completions, and trains on it, on however many processes it is launched with."""

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOTrainer

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.credit import ESTIMATORS
from a2tgpo_trl.functional import turn_ids
from a2tgpo_trl.rollout.generation.backends import TransformersBackend
from a2tgpo_trl.signals.beliefs import BeliefScorer
from conftest import GROUP, QUESTION, correct, search


def main(folder: Path) -> None:
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    share = 4 // processes
    # One process plays 0 and 1 tool turns, the other 3 and 2
    script = tiny.Script(GROUP[rank * share : (rank + 1) * share])

    generated = []

    def generate(trainer, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        """Collective, as with FSDP: where processes do not call it equally often, they hang or gather nonsense."""
        generated.append(prompt_ids)
        if processes > 1:
            torch.distributed.all_reduce(torch.ones(1))
        if prompt_ids == [[trainer._tokenizer.eos_token_id]]:
            return [[7]], None
        return script.write(trainer._tokenizer, prompt_ids), None

    GRPOTrainer._generate_single_turn = generate
    TransformersBackend._what_is_collective = lambda backend, sharding: "FSDP"
    options = dict(
        output_dir=str(folder / f"run-{processes}"),
        num_generations=4,
        per_device_train_batch_size=share,
        steps_per_generation=1,
        num_iterations=2,
        max_completion_length=400,
        max_steps=3,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    rows = [{"prompt": QUESTION, "answer": ["Paris"]}] * 8
    trainer = build(rows, **options)
    batch = trainer._generate_and_score_completions([dict(row) for row in rows[:share]])
    generations = list(map(len, generated))
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if "/" in name}
    alone, forwards = score_in_forwards_of_their_own(trainer, [dict(row) for row in rows[:share]])
    trainer.train()
    otherwise = build(rows, **options, **OTHER_BELIEFS)
    aliases = [row | {"answer": ["Paris", "Lutetia", "the city of Lyon"]} for row in rows[:share]]
    outcome = build(rows, **options, advantage_estimator="grpo", skip_empty_updates=True)
    others = {name: by_method(name, rows, share, options) for name in OF_CHAINS}
    critics = {layers: trained_critic(rows, options, layers) for layers in (2, 0)}
    torch.save(
        {
            "critics": critics,
            "saved": saves_critic(rows, options, folder / f"model-{rank}"),
            "outcome": outcome._generate_and_score_completions([dict(row) for row in rows[:share]])["advantages"],
            "advantages": list(batch["advantages"]),
            **{f"advantages of {name}": list(advantages) for name, advantages in others.items()},
            "clip_scale": list(batch["clip_scale"]),
            "information_gain": list(batch["information_gain"]),
            "local_turns": int(turn_ids(batch["completion_mask"], batch["tool_mask"]).max()) + 1,
            "generations": generations,
            "information_gain_by_trees": list(alone[0]),
            "information_gain_by_prefixes": list(alone[1]),
            "information_gain_otherwise": list(otherwise._generate_and_score_completions(aliases)["information_gain"]),
            "forwards": forwards,
            "metrics": {
                name: value
                for name, value in metrics.items()
                if name.startswith(("info", "turn", "adv", "clip", "bel", "rollout/stop"))
            },
            "empty": trainer.skipped_updates.num_empty,
            "skipped": skipped_shards(trainer, rank),
            "weights": dict(trainer.accelerator.unwrap_model(trainer.model).state_dict()),
        },
        folder / f"{processes}-{rank}.pt",
    )


# Trees need whole groups on each process
OF_CHAINS = [name for name, estimator in ESTIMATORS.items() if "tree" not in estimator.signals]


def by_method(name, rows, share, options):
    """Advantages of another method, of tokens; with turn rewards where it reads them."""
    reads = (*ESTIMATORS[name].signals, *ESTIMATORS[name].optional_signals)
    trainer = build(
        rows, **options, advantage_estimator=name, functions=[lengths] if "turn_rewards" in reads else None
    )
    batch = trainer._generate_and_score_completions([dict(row) for row in rows[:share]])
    advantages = batch["advantages"]
    return advantages if advantages.dim() == 2 else advantages.unsqueeze(1).where(batch["turn_ids"] >= 0, 0.0)


def trained_critic(rows, options, layers):
    """Weights and losses of a critic after plain gradient descent, clipped and not."""
    options = options | dict(optim="sgd", critic_layers=layers, critic_learning_rate=0.05, logging_steps=1)
    trainer = build(rows, **options, advantage_estimator="turn_ppo", gae_lambda=0.8)
    trainer.train()
    losses = [row["critic/value_loss"] for row in trainer.state.log_history if "loss" in row]
    return dict(trainer.signals["values"].critic.state_dict()), dict(trainer.model.state_dict()), losses


def saves_critic(rows, options, folder):
    """Whether this process writes the critic where it is told to save a model."""
    build(rows, **options, advantage_estimator="turn_ppo").save_model(str(folder))
    return (folder / "critic.pt").exists()


def lengths(turns, **columns):
    return [[len(turn.ids) / 10 if k != 1 else None for k, turn in enumerate(own)] for own in turns]


def skipped_shards(trainer, rank):
    """Which gradients are dropped where each process has a shard of its own, as with FSDP."""
    shards = ([0.0, 0.0], [0.0, 1.0], [torch.nan, 1.0], [1.0, -torch.inf], [1.0, 1.0])
    skipped = []
    for shard in shards:
        module = torch.nn.ParameterList([torch.zeros(1)])
        module[0].grad = torch.tensor([shard[rank]])
        trainer.skipped_updates.on_pre_optimizer_step(None, trainer.state, None, model=module)
        skipped.append(module[0].grad is None)
    return skipped


OTHER_BELIEFS = dict(belief_model="reference", answer_aliases="logsumexp", gain_from="turn_end", beta=0.1)


def build(rows, functions=None, **options):
    args, dataset = A2TGPOConfig(**options), Dataset.from_list(rows)
    adapter = LoraConfig(target_modules="all-linear", init_lora_weights=False) if args.beta else None
    given = dict(processing_class=tiny.tokenizer(), tools=[search], turn_reward_funcs=functions)
    trainer = A2TGPOTrainer(tiny.model(), correct, args, dataset, peft_config=adapter, **given)
    trainer.model.train()
    return trainer


def score_in_forwards_of_their_own(trainer, rows):
    """Gains by trees of one rollout each, then by prefixes of one context each: their forwards are collective as with FSDP."""
    gains, forwards, original = [], [], BeliefScorer._score

    def score(self, model, **inputs):
        forwards[-1] += 1
        if trainer.accelerator.num_processes > 1:
            torch.distributed.all_reduce(torch.ones(1))
        return original(self, model, **inputs)

    BeliefScorer._score = score
    trainer.signals["beliefs"]._shares_forward = lambda: False
    trainer.args.ig_tokens_per_batch = 1
    for reason in (None, "asked for"):
        trainer.signals["beliefs"].scorer.why_prefixes = reason
        forwards.append(0)
        gains.append(trainer._generate_and_score_completions(rows)["information_gain"])
    BeliefScorer._score = original
    trainer.signals["beliefs"].scorer.why_prefixes = None
    del trainer.signals["beliefs"]._shares_forward
    return gains, forwards


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
