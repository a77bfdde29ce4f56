"""Beliefs of hand-made rows, on every path and by one unpadded forward per context."""

import math

import torch
from accelerate import Accelerator
from trl.trainer.utils import add_fused_lm_head

import tiny
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.signals.beliefs import (
    BeliefPlan,
    BeliefScorer,
    ProbedRow,
    make_probe,
    share_contexts,
    shared_beliefs,
)

TEMPLATE = "<answer>{answer}</answer>"
NAN = torch.nan


def make_rows(template=TEMPLATE, seed=0):
    """Rows of 3, 0 and 1 probes after the prompt, one that shares a turn, one without an answer."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = tiny.tokenizer()

    def ids(n):
        return torch.randint(5, 399, (n,), generator=generator).tolist()

    prompt, turn, paris = ids(7), ids(8), [make_probe(tokenizer, template, "Paris")]
    return [
        ProbedRow(prompt + turn + ids(25), [7, 15, 29, 40], paris),
        ProbedRow(ids(5), [5, None, None, None], [make_probe(tokenizer, template, "東京 12")]),
        ProbedRow(ids(140), [9, 60, 130, None], [make_probe(tokenizer, template, "x")]),
        ProbedRow(prompt + turn + ids(9), [7, 15, 24, None], paris),
        ProbedRow(ids(12), [3, 8, None, None], []),
    ]


def make_rows_with_aliases(template=TEMPLATE):
    """The same with 3, 1, 2, 3 and 0 aliases, two of which begin alike, and contexts that end in the middle of a turn."""
    tokenizer = tiny.tokenizer()
    aliases = [["Paris", "Paris, France", "x"], ["東京 12"], ["yen", "12345"], ["Paris", "Paris, France", "x"], []]
    between = [[11, 22, 35], [None] * 3, [30, 100, None], [11, 20, None], [5, None, None]]
    rows = []
    for row, texts, middles in zip(make_rows(template), aliases, between, strict=True):
        later = [end for pair in zip(middles, row.ends[1:], strict=True) for end in pair]
        rows.append(
            ProbedRow(row.context, [row.ends[0], *later], [make_probe(tokenizer, template, text) for text in texts])
        )
    return rows


def naive(model, rows, dtype=torch.float64, aliases="first"):
    """One unpadded forward per context and alias, log-softmax over full logits."""
    model = model.to(dtype)
    table = torch.full((len(rows), len(rows[0].ends)), NAN, dtype=torch.float64)
    for i, row in enumerate(rows):
        for k, end in enumerate(row.ends):
            if end is not None and row.probes:
                beliefs = [naive_belief(model, row.context[:end], probe) for probe in row.probes]
                table[i, k] = {
                    "first": beliefs[0],
                    "max": max(beliefs),
                    "logsumexp": math.log(sum(map(math.exp, beliefs))),
                }[aliases]
    return table


@torch.no_grad()
def naive_belief(model, context, probe):
    logps = model(torch.tensor([context + probe.ids])).logits.log_softmax(-1)[0]
    scored = [
        logps[len(context) + j - 1, token].item()
        for j, (token, on) in enumerate(zip(probe.ids, probe.scored, strict=True))
        if on
    ]
    return sum(scored) / len(scored)


def make_scorer(model, max_tokens=None, attention=None, aliases="first"):
    add_fused_lm_head(model.get_base_model() if hasattr(model, "get_base_model") else model)
    on_cpu = model.device.type == "cpu"
    args = A2TGPOConfig(
        answer_template=TEMPLATE,
        answer_aliases=aliases,
        ig_tokens_per_batch=max_tokens,
        disable_tqdm=True,
        use_cpu=on_cpu,
        bf16=False,
    )
    scorer = BeliefScorer(model, tiny.tokenizer(), Accelerator(cpu=on_cpu), args, 1024)
    scorer.attention = attention or scorer.attention
    return scorer


def make_plan(rows, padding=0):
    unique, keys = share_contexts(rows)
    longest = max(row.ends[0] for row in rows)
    return BeliefPlan(unique, torch.tensor(keys), [padding + longest - row.ends[0] for row in rows])


def measured(scorer, model, rows, batch_size=2):
    plan = make_plan(rows)
    return shared_beliefs(scorer.measure(model, plan, batch_size).cpu(), plan.keys)


def with_shared_forward(scorer, model, rows, batch_size=2, padding=3):
    """As TRL runs it: prompts padded on the left, completions on the right, in micro-batches."""
    plan = make_plan(rows, padding)
    shared = scorer.share_forward(model, plan)
    width = max(first + len(row.context) for first, row in zip(plan.first_columns, rows, strict=True)) + 2
    for start in range(0, len(rows), batch_size):
        ids, mask = [], []
        for first, row in list(zip(plan.first_columns, rows, strict=True))[start : start + batch_size]:
            right = width - first - len(row.context)
            ids.append([0] * first + row.context + [0] * right)
            mask.append([0] * first + [1] * len(row.context) + [0] * right)
        ids, mask = torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)
        inputs = dict(input_ids=ids, attention_mask=mask)
        with torch.no_grad():
            shared(**inputs, labels=inputs["input_ids"], fused_lm_head=True)
    return shared_beliefs(torch.cat(shared.beliefs).cpu(), plan.keys)


def agree(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual.double(), expected, atol=atol, rtol=0, equal_nan=True)
    assert expected.nan_to_num().unique().numel() > 5  # the contexts differ, and so do the beliefs
