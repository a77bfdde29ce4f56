"""The columns of turn records."""

import pyarrow as pa

_CALL = pa.struct(
    [
        pa.field("name", pa.string()),
        pa.field("arguments", pa.string()),
        pa.field("result", pa.string()),
        pa.field("failed", pa.bool_()),
        pa.field("seconds", pa.float32()),
    ]
)


def _column(name: str, kind: pa.DataType, what: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"what": what})


SCHEMA = pa.schema(
    [
        _column("step", pa.int32(), "optimizer steps done when the rollout was written"),
        _column("batch", pa.int32(), "number of the generation batch, ascending from 0"),
        _column(
            "group", pa.int32(), "number of the prompt in its batch; rollouts of a group answer the same question"
        ),
        _column("generation", pa.int32(), "number of the rollout in its group"),
        _column("turn", pa.int32(), "index of the turn in its rollout, from 0"),
        _column("num_turns", pa.int32(), "turns of the rollout, answer turn included"),
        _column("prompt", pa.string(), "the prompt as text; U+FFFC stands for a picture"),
        _column(
            "prompt_images",
            pa.list_(pa.string()),
            "names of the pictures in the prompt, in their order",
            nullable=True,
        ),
        _column("answer", pa.string(), "the true answer, the first of its aliases", nullable=True),
        _column("text", pa.string(), "what the model wrote in this turn, special tokens included"),
        _column("num_tokens", pa.int32(), "tokens of it"),
        _column(
            "observation",
            pa.string(),
            "what the model read after it, markup included; U+FFFC stands for a picture",
            nullable=True,
        ),
        _column("images", pa.list_(pa.string()), "names of the pictures in it, in their order", nullable=True),
        _column(
            "thumbnails",
            pa.map_(pa.string(), pa.binary()),
            "small copies of these pictures by name, JPEG files: of those that no row before it in its batch has",
            nullable=True,
        ),
        _column("num_observation_tokens", pa.int32(), "tokens of it"),
        _column(
            "calls",
            pa.list_(_CALL),
            "tool calls of the turn: tool, arguments as JSON, result as text, whether that is an error, and the seconds it "
            "ran (null: it did not run)",
        ),
        _column(
            "belief_before",
            pa.float32(),
            'belief in the answer that the gain is measured from: before the turn, s(k); with `gain_from="turn_end"` at the '
            "end of its own text",
            nullable=True,
        ),
        _column("belief_after", pa.float32(), "belief after its observation, s(k + 1)", nullable=True),
        _column("information_gain", pa.float32(), "belief_after − belief_before, IG", nullable=True),
        _column("normalized_gain", pa.float32(), "the gain, normalised within its turn group", nullable=True),
        _column("turn_group_size", pa.int32(), "scored members of the turn group (prompt, turn index)", nullable=True),
        _column("turn_reward", pa.float32(), "weighted sum of the turn's own rewards", nullable=True),
        _column(
            "turn_rewards",
            pa.map_(pa.string(), pa.float32()),
            "reward of the turn by the name of its function, null where it gave none",
            nullable=True,
        ),
        _column(
            "node", pa.int32(), "number of the turn in the tree of its prompt; null without a tree", nullable=True
        ),
        _column(
            "parent",
            pa.int32(),
            "node of the turn before it; null at the first turn, and without a tree",
            nullable=True,
        ),
        _column("depth", pa.int32(), "turns before it on its branch of the tree; null without a tree", nullable=True),
        _column(
            "leaves_below", pa.int32(), "rollouts of the tree that share the turn; null without a tree", nullable=True
        ),
        _column(
            "surprisal",
            pa.float32(),
            "mean of -log π over its sampled tokens, in nats; null without a tree",
            nullable=True,
        ),
        _column(
            "advantage",
            pa.float32(),
            "advantage of the turn's tokens, before tree_shared_turns divides it by leaves_below; null: they are masked",
            nullable=True,
        ),
        _column("outcome_advantage", pa.float32(), "the part of it that the rewards gave", nullable=True),
        _column("clip_low", pa.float32(), "lower end of the clip range of the importance ratio", nullable=True),
        _column("clip_high", pa.float32(), "upper end of it", nullable=True),
        _column("clip_scale", pa.float32(), "factor of the clip range that the gain gave", nullable=True),
        _column(
            "estimator_columns",
            pa.map_(pa.string(), pa.float32()),
            "what else the estimator tells of the turn, by the name of its column",
        ),
        _column("reward", pa.float32(), "weighted sum of the rewards of the rollout"),
        _column("rewards", pa.map_(pa.string(), pa.float32()), "reward by the name of its function"),
        _column(
            "stop_reason",
            pa.string(),
            "why the rollout ended, see docs/rollout.md; null where it had no tools",
            nullable=True,
        ),
    ],
    metadata={"format": "a2tgpo-trl turn records 1"},
)
"""One row a turn; what is said of the rollout is repeated in each of its turns."""
