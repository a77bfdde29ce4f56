"""Beliefs: which tokens are scored, and that packed and prefix-by-prefix scoring are the same number."""

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, MambaConfig
from trl.trainer.utils import add_fused_lm_head

import tiny
from a2tgpo_trl.architecture import attention_obstacle
from a2tgpo_trl.belief import (
    Probe,
    ProbedRow,
    make_probe,
    packed_beliefs,
    packed_length,
    prefix_beliefs,
    probed_rows,
    scored_answer,
    share_contexts,
    shared_beliefs,
)

CPU = torch.device("cpu")
TEMPLATE = "<answer>{answer}</answer>"


def scored_text(template, answer):
    tokenizer = tiny.tokenizer()
    probe = make_probe(tokenizer, template, answer)
    assert tokenizer.decode(probe.ids) == template.format(answer=answer)
    return [tokenizer.decode([token]) for token, scored in zip(probe.ids, probe.scored, strict=True) if scored]


@pytest.mark.parametrize(
    "answer",
    ["Paris", " Paris", "  Paris", "12345", "1 234", "Pérou à ü", "東京", "東京 1", "x", ">", "<answer>", "🙂"],
)
@pytest.mark.parametrize("template", [TEMPLATE, "{answer}", "The answer is {answer}", "{answer}.", "é{answer}é"])
def test_scored_tokens_are_exactly_those_that_hold_answer_bytes(template, answer):
    """Judge: byte by byte. A byte-level token stands for known bytes, so its place in the text is known exactly."""
    tokenizer = tiny.tokenizer()
    probe = make_probe(tokenizer, template, answer)
    first = len(template[: template.index("{answer}")].encode())
    last = first + len(answer.encode())
    position, expected = 0, []
    for token in tokenizer.convert_ids_to_tokens(probe.ids):
        stop = position + len(token)  # one character of a byte-level token is one byte of text
        expected.append(position < last and stop > first)
        position = stop
    assert position == len(template.format(answer=answer).encode())
    assert probe.scored == expected


def test_a_token_that_merges_the_border_is_scored():
    # " capital of" holds the merge " c…": a template that ends in a space shares its token with the answer
    assert "".join(scored_text("The {answer}", "capital")) == " capital"


def test_special_tokens_are_not_added():
    tokenizer = tiny.tokenizer()
    assert not set(make_probe(tokenizer, TEMPLATE, "Paris").ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    "cell, expected",
    [
        ("Paris", "Paris"),
        (["Paris", "Lutetia"], "Paris"),
        ("", None),
        ("  ", None),
        ([], None),
        (None, None),
        ([""], None),
    ],
)
def test_the_first_alias_is_scored(cell, expected):
    assert scored_answer(cell, "'answer' of row 0") == expected


def test_an_answer_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"'answer' of row 3 must be text or a list of aliases, got 7 \(int\)"):
        scored_answer(7, "'answer' of row 3")


def score_with(model):
    add_fused_lm_head(model)

    def score(**inputs):
        with torch.no_grad():
            return model(**inputs, fused_lm_head=True).log_probs

    return score


def ragged_rows(seed=0, template=TEMPLATE):
    """Rows of 3, 0 and 1 probes after the prompt, one without an answer, of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = tiny.tokenizer()

    def ids(n):
        return torch.randint(5, 399, (n,), generator=generator).tolist()

    return [
        ProbedRow(ids(40), [7, 15, 29, 40], make_probe(tokenizer, template, "Paris")),
        ProbedRow(ids(5), [5, None, None, None], make_probe(tokenizer, template, "東京 12")),
        ProbedRow(ids(80), [9, 60, None, None], make_probe(tokenizer, template, "x")),
        ProbedRow(ids(12), [3, 8, None, None], None),
    ]


def naive_beliefs(model, rows):
    """One unpadded forward per context, log-softmax over full logits."""
    table = torch.full((len(rows), len(rows[0].ends)), torch.nan, dtype=torch.float64)
    for i, row in enumerate(rows):
        for k, end in enumerate(row.ends):
            if end is None or row.probe is None:
                continue
            ids = torch.tensor([row.context[:end] + row.probe.ids])
            with torch.no_grad():
                logps = model(ids).logits.double().log_softmax(-1)[0]
            scored = [
                logps[end + j - 1, token].item()
                for j, (token, on) in enumerate(zip(row.probe.ids, row.probe.scored, strict=True))
                if on
            ]
            table[i, k] = sum(scored) / len(scored)
    return table


@pytest.mark.parametrize("template", [TEMPLATE, "{answer}"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt2"])
def test_packed_prefix_and_naive_scoring_agree(architecture, attention, template):
    model = tiny.model(architecture, attn_implementation=attention).eval()
    rows = ragged_rows(template=template)
    expected = naive_beliefs(model, rows)
    score = score_with(model)
    assert attention_obstacle(model) is None
    packed = packed_beliefs(score, rows, torch.float32 if attention == "eager" else None, CPU)
    prefix = prefix_beliefs(score, rows, CPU)
    torch.testing.assert_close(packed.double(), expected, atol=1e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(prefix.double(), expected, atol=1e-4, rtol=0, equal_nan=True)
    assert expected.nan_to_num().unique().numel() > 5  # the contexts differ, and so do the beliefs


def test_prefix_scoring_serves_a_sliding_window_model():
    model = tiny.model("gemma2", attn_implementation="eager").eval()
    rows = ragged_rows()
    expected = naive_beliefs(model, rows)
    assert "sliding_attention" in attention_obstacle(model)
    torch.testing.assert_close(
        prefix_beliefs(score_with(model), rows, CPU).double(), expected, atol=1e-4, rtol=0, equal_nan=True
    )


def test_flash_attention_and_prompt_learning_cannot_be_packed():
    model = tiny.model()
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in attention_obstacle(model)
    model.config._attn_implementation, model.config.rope_parameters = "sdpa", {"rope_type": "longrope"}
    assert "longrope" in attention_obstacle(model)
    falcon = AutoModelForCausalLM.from_config(
        FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True)
    )
    assert "ALiBi" in attention_obstacle(falcon)
    mamba = AutoModelForCausalLM.from_config(MambaConfig(hidden_size=32, num_hidden_layers=1))
    assert attention_obstacle(mamba) is not None
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        tiny.model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, tokenizer_name_or_path=None)
    )
    assert "virtual tokens" in attention_obstacle(adapted)


def test_number_of_forwards():
    model = tiny.model().eval()
    rows, calls = ragged_rows(), []

    def counting(**inputs):
        calls.append(inputs["input_ids"].shape)
        return score_with(model)(**inputs)

    packed_beliefs(counting, rows, None, CPU)
    assert len(calls) == 1
    assert calls[0] == (4, max(map(packed_length, rows)))
    calls.clear()
    prefix_beliefs(counting, rows, CPU)
    assert len(calls) == len(rows[0].ends)


def test_a_probe_sees_neither_other_probes_nor_what_comes_later():
    score = score_with(tiny.model().eval())
    rows = ragged_rows()[:1]
    before = packed_beliefs(score, rows, None, CPU)
    changed = [ProbedRow(rows[0].context[:29] + [9] * 11, rows[0].ends, rows[0].probe)]
    after = packed_beliefs(score, changed, None, CPU)
    torch.testing.assert_close(after[:, :3], before[:, :3], atol=1e-5, rtol=0)
    assert (after[:, 3] - before[:, 3]).abs() > 1e-3


def test_rows_of_a_batch():
    batch = {
        "prompt_ids": torch.tensor([[0, 11, 12], [21, 22, 23]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[13, 14, 15, 16], [24, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]),
    }
    ends = torch.tensor([[3, -1], [-1, -1]])
    probe = Probe([7, 8], [True, False])
    first, second = probed_rows(batch, ends, [probe, None], max_length=None)
    assert first == ProbedRow([11, 12, 13, 14, 15, 16], [2, 5, None], probe)
    assert second == ProbedRow([21, 22, 23, 24], [3, None, None], None)
    # 5 tokens of context and 2 of the probe do not fit in 6: that boundary is left out, the prompt's is kept
    assert probed_rows(batch, ends, [probe, None], max_length=6)[0].ends == [2, None, None]
    assert first.padded_to(3).ends == [2, 5, None, None]


def test_a_context_is_probed_once():
    probe, other = Probe([7, 8], [True, False]), Probe([7, 9], [True, False])
    rows = [
        ProbedRow([1, 2, 3, 4], [2, 3, 4], probe),
        ProbedRow([1, 2, 3, 9], [2, 3, 4], probe),  # the prompt and the first turn are row 0's
        ProbedRow([1, 2, 3, 4], [2, None, None], other),  # another answer
        ProbedRow([1, 2], [2, None, None], None),
    ]
    unique, keys = share_contexts(rows)
    assert [row.ends for row in unique] == [[2, 3, 4], [None, None, 4], [2, None, None], [None, None, None]]
    assert keys[3] == [-1, -1, -1] and keys[2][1:] == [-1, -1]
    nan = torch.nan
    scored = torch.tensor([[1.0, 2.0, 3.0], [nan, nan, 4.0], [5.0, nan, nan], [nan, nan, nan]])
    expected = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [5.0, nan, nan], [nan, nan, nan]])
    torch.testing.assert_close(shared_beliefs(scored, torch.tensor(keys)), expected, equal_nan=True)


def test_a_context_that_two_processes_scored_has_the_first_ones_belief():
    beliefs, keys = torch.tensor([[1.0, 2.0], [1.1, 3.0]]), torch.tensor([[7, 8], [7, 9]])
    assert shared_beliefs(beliefs, keys).tolist() == [[1.0, 2.0], [1.0, 3.0]]
