"""Beliefs on every path against one unpadded forward per context in float64."""

import logging
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    DeepseekV3Config,
    DogeConfig,
    FalconConfig,
    GPTNeoXConfig,
    GraniteConfig,
    MambaConfig,
    Qwen3MoeConfig,
)

import tiny
from a2tgpo_trl.integrations.architecture import why_no_custom_mask, why_no_token_tree, why_padding_shifts, why_random
from a2tgpo_trl.signals.beliefs import (
    Probe,
    ProbedRow,
    make_probe,
    queries,
    share_contexts,
)
from a2tgpo_trl.signals.beliefs.attention import BLOCK, tree_block_mask, why_no_flex
from a2tgpo_trl.signals.beliefs.packing import pack
from scoring import (
    NAN,
    TEMPLATE,
    agree,
    make_rows,
    make_rows_with_aliases,
    make_scorer,
    measured,
    naive,
    with_shared_forward,
)


@pytest.mark.parametrize("template", [TEMPLATE, "{answer}", "{answer} it is"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt2"])
def test_every_path_agrees_with_the_naive_loop(architecture, attention, template):
    rows = make_rows(template)
    model = tiny.model(architecture, attn_implementation=attention).eval()
    assert why_no_token_tree(model) is None
    scorer = make_scorer(model)
    trees = measured(scorer, model, rows)
    can_share = scorer.why_no_shared_forward(model) is None
    scorer.why_prefixes = "as if"
    prefixes = measured(scorer, model, rows)
    shared = with_shared_forward(scorer, model, rows) if can_share else None
    assert model.config._attn_implementation == attention
    expected = naive(tiny.model(architecture, attn_implementation=attention).eval(), rows)
    agree(trees, expected)
    agree(prefixes, expected)
    assert (shared is None) == (architecture == "gpt2")
    if shared is not None:
        agree(shared, expected)


@pytest.mark.parametrize("path", ["trees", "prefixes", "shared"])
def test_agreement_is_not_a_matter_of_tolerance(path, monkeypatch):
    """The same in double precision, where what is left is rounding of the LM head, which TRL computes in float32."""
    rows, model = make_rows(), tiny.model(dtype=torch.float64).eval()
    agree(
        on_path(path, make_scorer(model), model, rows), naive(tiny.model(dtype=torch.float64).eval(), rows), atol=2e-6
    )


def on_path(path, scorer, model, rows):
    scorer.why_prefixes = "as if" if path == "prefixes" else None
    return with_shared_forward(scorer, model, rows) if path == "shared" else measured(scorer, model, rows)


@pytest.mark.parametrize("aliases", ["max", "logsumexp"])
@pytest.mark.parametrize("path", ["trees", "prefixes", "shared"])
def test_all_aliases_agree_with_the_naive_loop(path, aliases):
    rows, model = make_rows_with_aliases(), tiny.model(dtype=torch.float64).eval()
    reference = tiny.model(dtype=torch.float64).eval()
    expected, first = (naive(reference, rows, aliases=joined) for joined in (aliases, "first"))
    agree(on_path(path, make_scorer(model, aliases=aliases), model, rows), expected, atol=2e-6)
    known = ~first.isnan()
    assert (expected >= first)[known].all() and (expected > first)[known].any()


def test_aliases_share_what_they_begin_with(monkeypatch):
    """Along with TRL's forward too: the last token of the context, and the template before the answer."""
    rows, model = make_rows_with_aliases()[:1], tiny.model().eval()
    scorer = make_scorer(model, aliases="max")
    score = Mock(wraps=scorer._score)
    monkeypatch.setattr(scorer, "_score", score)
    with_shared_forward(scorer, model, rows)
    fed = {
        (q.end, tuple(q.ids[q.context_length - 1 : n]))
        for q in queries(rows)
        for n in range(q.context_length, len(q.ids) + 1)
    }
    assert score.call_args.kwargs["input_ids"].shape == (1, len(fed))
    assert len(fed) <= sum(len(q.ids) - q.context_length + 1 for q in queries(rows)) / 2


@pytest.mark.parametrize("path", ["trees", "shared"])
def test_all_aliases_are_scored_in_as_many_forwards_as_one(path, monkeypatch):
    model, rows = tiny.model().eval(), make_rows_with_aliases()
    forwards = []
    for count in (1, 3):
        scorer = make_scorer(model, max_tokens=10_000, aliases="max")
        chosen = [ProbedRow(row.context, row.ends, row.probes[:count]) for row in rows]
        with monkeypatch.context() as patch:
            score = Mock(wraps=scorer._score)
            patch.setattr(scorer, "_score", score)
            on_path(path, scorer, model, chosen)
        forwards.append(score.call_count)
    assert forwards[0] == forwards[1] > 0


def other_models():
    """Families whose heads, layers or positions are unlike Llama's."""
    small = dict(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    latent = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=12, v_head_dim=12)
    routed = dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16)
    return {
        "mixture of experts": (
            Qwen3MoeConfig,
            {**small, **experts, "num_key_value_heads": 2, "head_dim": 8, "output_router_logits": True},
        ),
        "latent attention": (
            DeepseekV3Config,
            {**small, **latent, **routed, "first_k_dense_replace": 1, "num_key_value_heads": 4},
        ),
        "partial rotary": (GPTNeoXConfig, {**small, "rotary_pct": 0.25}),
        "scaled attention": (GraniteConfig, {**small, "num_key_value_heads": 2, "attention_multiplier": 0.2}),
    }


@pytest.mark.parametrize("family", other_models())
def test_other_families_agree(family):
    """Two answers that share all but their last token as well, where a branch has no token of its own."""
    config_class, options = other_models()[family]

    def build():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_class(**options), dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
        return model

    context = make_rows()[0].context
    twins = [ProbedRow(context, [7, 15, None, None], [Probe([9, 8, last], [True] * 3)]) for last in (5, 6)]
    rows, model = [*make_rows(), *twins], build()
    scorer = make_scorer(model)
    assert scorer.why_prefixes is None
    takes_double = family not in ("mixture of experts", "latent attention")  # torch's grouped products do not
    expected = naive(build(), rows, torch.float64 if takes_double else torch.float32)
    agree(measured(scorer, model, rows, batch_size=8), expected)
    agree(with_shared_forward(scorer, model, rows), expected)
    assert scorer.why_prefixes is None


def test_a_model_that_asks_more_of_its_attention_is_scored_prefix_by_prefix(caplog):
    """Doge adds a bias of its own through the mask, which only running it shows."""

    def build():
        torch.manual_seed(0)
        config = DogeConfig(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 or name.endswith(".A"):
                    parameter.normal_(std=0.2)
        return model

    rows, model = make_rows(), build()
    scorer = make_scorer(model)
    assert scorer.why_prefixes is None
    with caplog.at_level(logging.WARNING):
        agree(measured(scorer, model, rows), naive(build(), rows))
    assert "doge gives its attention a mask of its own" in caplog.text and "a mask of its own" in scorer.why_prefixes


def test_contexts_of_other_lengths_do_not_change_the_rotary_frequencies():
    """With longrope those of a batch are chosen by its longest sequence."""

    def build():
        rope = {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
            "factor": 4.0,
            "rope_theta": 10000.0,
        }
        return tiny.model(rope_parameters={**rope, "original_max_position_embeddings": 48}).eval()

    rows, model = make_rows(), build()
    agree(measured(make_scorer(model), model, rows, batch_size=8), naive(build(), rows))


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens(kind):
    """An adapter's tokens before the first are no tokens of ours."""
    peft = pytest.importorskip("peft")

    def build():
        torch.manual_seed(0)
        return peft.get_peft_model(
            tiny.model(), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
        ).eval()

    rows, adapted = make_rows(), build()
    expected = naive(build(), rows)
    actual = measured(make_scorer(adapted), adapted, rows)
    if kind == "PromptTuningConfig":  # the naive loop's logits have them in front
        expected = torch.full_like(expected, NAN)
        with torch.no_grad():
            for i, row in enumerate(rows):
                for k, end in enumerate(row.ends):
                    for probe in row.probes if end is not None else []:
                        logits = build().double()(torch.tensor([row.context[:end] + probe.ids])).logits[:, 3:]
                        logps = logits.log_softmax(-1)[0]
                        pairs = zip(probe.ids, probe.scored, strict=True)
                        scored = [logps[end + j - 1, token] for j, (token, on) in enumerate(pairs) if on]
                        expected[i, k] = torch.stack(scored).mean()
    agree(actual, expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma"])
def test_flex_attention_agrees(architecture):
    """Its own code, not compiled, which takes the same mask."""
    rows, model = make_rows(), tiny.model(architecture).eval()
    scorer = make_scorer(model, attention="flex")
    with torch.compiler.set_stance("force_eager"):
        actual = measured(scorer, model, rows)
    agree(actual, naive(tiny.model(architecture).eval(), rows))


def test_flex_attention_is_tried_before_it_is_used(monkeypatch):
    config = tiny.model().config
    with torch.compiler.set_stance("force_eager"):
        assert why_no_flex(config, torch.float32, torch.device("cpu")) is None

    def broken(*args, **kwargs):
        raise RuntimeError("no compiler")

    flex = AttentionInterface._global_mapping["flex_attention"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "flex_attention", broken)
    assert why_no_flex(config, torch.float32, torch.device("cpu")) == "it fails with RuntimeError"

    def wrong(*args, **kwargs):
        with torch.compiler.set_stance("force_eager"):
            outputs, extra = flex(*args, **kwargs)
        return outputs + 1, extra

    monkeypatch.setitem(AttentionInterface._global_mapping, "flex_attention", wrong)
    assert why_no_flex(config, torch.float32, torch.device("cpu")) == "it is off by 1"


def test_the_block_mask_is_the_tree():
    rows = make_rows()
    asked = queries(rows)
    (tree,) = pack([q.ids for q in asked], [q.context_length for q in asked], [0] * len(asked), 10_000)
    tree.pad_to_multiple_of(BLOCK)
    ends = torch.tensor(tree.ends)
    index = torch.arange(len(ends))
    assert len(ends) > BLOCK
    sees = (index.unsqueeze(0) <= index.unsqueeze(1)) & (index.unsqueeze(1) < ends.unsqueeze(0))
    mask = tree_block_mask(ends)
    blocks = sees.view(-1, BLOCK, len(ends) // BLOCK, BLOCK).transpose(1, 2)
    partial = torch.zeros(blocks.shape[:2], dtype=torch.bool)
    whole = partial.clone()
    for target, count, listed in (
        (partial, mask.kv_num_blocks, mask.kv_indices),
        (whole, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for row, (number, columns) in enumerate(zip(count[0, 0], listed[0, 0], strict=True)):
            target[row, columns[:number].long()] = True
    assert not (partial & whole).any()
    assert torch.equal(whole, blocks.all(-1).all(-1))
    assert torch.equal(partial | whole, blocks.any(-1).any(-1))
    assert torch.equal(mask.mask_mod(0, 0, index.unsqueeze(1), index.unsqueeze(0)), sees)


def test_a_tree_is_scored_in_one_forward_of_its_distinct_tokens(monkeypatch):
    rows, model = make_rows(), tiny.model().eval()
    scorer = make_scorer(model)
    sizes, original = [], model.forward

    def counting(**inputs):
        sizes.append((inputs["input_ids"].numel(), inputs["shift_labels"].numel()))
        return original(**inputs)

    monkeypatch.setattr(model, "forward", counting)
    measured(scorer, model, rows, batch_size=8)
    asked = queries(rows)
    distinct = {tuple(query.ids[:n]) for query in asked for n in range(1, len(query.ids) + 1)}
    scored = {(tuple(query.ids), label) for query in asked for label in query.labels}
    # nothing is read twice, not even what follows the last observation; the LM head sees the answers' predictors alone
    assert [size for size, _ in sizes] == [len(distinct)]
    assert len(scored) <= sizes[0][1] == sum(len(q.labels) for q in queries(share_contexts(rows)[0]))


def test_a_probe_that_repeats_what_the_model_wrote():
    """The completion goes on as the probe does: they share the tokens, and the belief is the same as without."""
    tokenizer, model = tiny.tokenizer(), tiny.model().eval()
    probe = make_probe(tokenizer, TEMPLATE, "Paris")
    context = [9, 8, 7, *probe.ids, 5, 6, 4]
    rows = [ProbedRow(context, [3, len(context), None, None], [probe])]
    actual = measured(make_scorer(model), model, rows)
    torch.testing.assert_close(actual.double(), naive(tiny.model().eval(), rows), atol=1e-4, rtol=0, equal_nan=True)


def test_a_probe_sees_neither_other_probes_nor_what_comes_later():
    model = tiny.model().eval()
    scorer = make_scorer(model)
    rows = make_rows()[:1]
    changed = [ProbedRow(rows[0].context[:29] + [9] * 11, rows[0].ends, rows[0].probes)]
    for score in (measured, with_shared_forward):
        before, after = score(scorer, model, rows), score(scorer, model, changed)
        torch.testing.assert_close(after[:, :3], before[:, :3], atol=1e-5, rtol=0)
        assert (after[:, 3] - before[:, 3]).abs() > 1e-3


def test_nothing_to_score():
    model = tiny.model().eval()
    empty = [ProbedRow([4, 5, 6], [2, 3], []), ProbedRow([4, 5], [2, None], [Probe([7], [False])])]
    scorer = make_scorer(model)
    for reason in (None, "as if"):
        scorer.why_prefixes = reason
        assert measured(scorer, model, empty).isnan().all()
    assert with_shared_forward(scorer, model, empty).isnan().all()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_micro_batches_without_probes(num_processes, monkeypatch):
    """Left out, unless another process may have some."""
    rows, model = [*make_rows()[-1:] * 2, *make_rows()], tiny.model().eval()
    scorer = make_scorer(model)
    monkeypatch.setattr(Accelerator, "num_processes", num_processes)
    sizes, original = [], scorer._score
    monkeypatch.setattr(scorer, "_score", lambda model, **inputs: sizes.append(1) or original(model, **inputs))
    actual = with_shared_forward(scorer, model, rows)
    assert actual[:2].isnan().all() and len(sizes) == {1: 2, 2: 4}[num_processes]
    torch.testing.assert_close(
        actual[2:], with_shared_forward(scorer, model, rows[2:]), atol=1e-5, rtol=0, equal_nan=True
    )


def test_an_answer_of_probability_zero_has_no_belief():
    model = tiny.model().eval()
    rows = make_rows()[:1]
    with torch.no_grad():  # the last label cannot be predicted: its logit is -inf
        bias = torch.zeros(400)
        bias[queries(rows)[0].labels[-1]] = -torch.inf
        model.lm_head.bias = nn.Parameter(bias)
    assert measured(make_scorer(model), model, rows).isnan().all()


@pytest.mark.parametrize(
    ("architecture", "dropout"),
    [("llama", dict(attention_dropout=0.5)), ("gpt2", dict(resid_pdrop=0.5, embd_pdrop=0.5))],
)
def test_beliefs_are_scored_without_dropout(architecture, dropout):
    """That of attention, and that of everything else, which a model takes care of itself."""
    model = tiny.model(architecture, **dropout).train()
    rows = make_rows()
    expected = naive(tiny.model(architecture).eval(), rows)
    agree(measured(make_scorer(model), model, rows), expected)
    assert model.training


def test_prefixes_serve_a_model_that_cannot_be_packed(caplog):
    model = tiny.model("gemma2", attn_implementation="eager").eval()
    rows = make_rows()
    with caplog.at_level(logging.WARNING):
        scorer = make_scorer(model)
    assert "reads each context from its beginning: gemma2 caps its attention scores" in caplog.text
    agree(measured(scorer, model, rows), naive(tiny.model("gemma2", attn_implementation="eager").eval(), rows))


def test_flash_attention_does_not_stand_in_the_way():
    """Scoring uses an attention of its own, whatever the model is trained with."""
    model = tiny.model()
    model.config._attn_implementation = "flash_attention_2"
    assert why_no_token_tree(model) is None
    assert "flash_attention_2" in why_no_custom_mask(model)


def test_reasons():
    model = tiny.model()
    for rope in ({"rope_type": "dynamic"}, {"full_attention": {"rope_type": "dynamic"}}):
        model.config.rope_parameters = rope
        assert "dynamic" in why_no_token_tree(model) and why_padding_shifts(model) is None
    model.config.rope_parameters = {"rope_type": "longrope"}
    assert "longrope" in why_no_token_tree(model) and "longrope" in why_no_custom_mask(model)
    assert "sliding_attention" in why_no_token_tree(
        tiny.model("gemma2", attn_implementation="eager", attn_logit_softcapping=None)
    )
    falcon = AutoModelForCausalLM.from_config(
        FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True)
    )
    assert "ALiBi" in why_no_custom_mask(falcon)
    assert "no attention function but its own" in why_no_token_tree(falcon)
    mamba = AutoModelForCausalLM.from_config(MambaConfig(hidden_size=32, num_hidden_layers=1))
    assert why_no_custom_mask(mamba) is not None and why_no_token_tree(mamba) is not None
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        tiny.model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, tokenizer_name_or_path=None)
    )
    assert "virtual tokens" in why_no_token_tree(adapted)
    assert "gpt2 has no rotary positions" in why_padding_shifts(tiny.model("gpt2"))


def test_why_random():
    assert why_random(tiny.model().train()) is None
    assert "attention_dropout" in why_random(tiny.model(attention_dropout=0.1).train())
    assert why_random(tiny.model(attention_dropout=0.1).eval()) is None
    gpt2 = dict(attn_pdrop=0.0, resid_pdrop=0.0)
    assert "embd_pdrop is on" in why_random(tiny.model("gpt2", embd_pdrop=0.1, **gpt2).train())
    assert why_random(tiny.model("gpt2", embd_pdrop=0.0, **gpt2).train()) is None
    assert "router_jitter_noise" in why_random(tiny.model(router_jitter_noise=0.01).train())
    peft = pytest.importorskip("peft")
    for p, random in ((0.0, False), (0.1, True)):
        lora = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=p)
        assert bool(why_random(peft.get_peft_model(tiny.model(), lora).train())) == random
