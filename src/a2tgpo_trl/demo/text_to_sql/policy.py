"""The policy that training starts from: a tiny model, taught by scripted traces how a careless writer of SQL goes about it.

A trace often begins with the mistake of its kind of question, sometimes without running it, and often answers with a query that
has just failed. Names in a trace are replaced by other names, drawn anew for each: what is learned is to copy them.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ...rollout import TagProtocol
from ...sql import Database, QueryError
from ...sql.database import literal
from .tables import KINDS, read_tables

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
TAGS = [f"<{slash}{tag}>" for tag in ("query", "result", "answer") for slash in ("", "/")]
WORDS = r"</?\w+>|COUNT\(\*\)|'(?:[^']|'')*'|[\w.]+|[^\w\s]"
"""What is one token: a tag, a quoted text, a word, or a mark."""
IGNORED = -100
"""Label of tokens that the model does not write."""


@dataclass(frozen=True)
class WarmStart:
    """
    Settings of the warm start.

    Attributes:
        mistakes (`float`): Share of queries that are the mistake of their kind.
        unchecked (`float`): Share of answers that are given without running the query.
        stubborn (`float`): Share of failed queries that are answered with all the same.
        steps (`int`): Optimizer steps.
        traces (`int`): In each step.
        learning_rate (`float`): Peak, with warm-up and linear decay.
        seed (`int`): Of the first weights and the traces.
    """

    mistakes: float = 0.75
    unchecked: float = 0.3
    stubborn: float = 0.6
    steps: int = 400
    traces: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


def make_tokenizer(database: Database) -> PreTrainedTokenizerFast:
    """One token a word of questions, queries and results, and one a quoted name."""
    texts = [text for kind in KINDS.values() for text in (kind.question, kind.sql, kind.mistake)]
    texts += [run(database, kind.mistake.format("''")) for kind in KINDS.values()]
    texts += ["NULL and more", " ".join(map(str, range(1000))), *names()]
    split = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    words = [word for text in texts for word, _ in split.pre_tokenize_str(text)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([PAD, END, UNKNOWN, *TAGS, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def names() -> list[str]:
    """All names in the tables, as SQL literals."""
    rows = (row for table in read_tables().values() for row in table)
    return sorted({literal(value) for row in rows for value in row if value is not None})


def run(database: Database, sql: str) -> str:
    """What the model reads of a query."""
    try:
        return database.query(sql)
    except QueryError as error:
        return str({"error": str(error)})


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A random model of half a million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def trace(chance: random.Random, question: dict, database: Database, habits: WarmStart) -> Iterator[tuple[str, str]]:
    """A scripted rollout: what is written in each turn, and what is read after it."""
    kind = KINDS[question["kind"]]
    before, after = kind.question.split("{}")
    name = question["question"].removeprefix(before).removesuffix(after)
    for _ in range(3):
        wrong = chance.random() < habits.mistakes
        sql = (kind.mistake if wrong else kind.sql).format(name)
        if chance.random() < habits.unchecked:
            break
        yield f"<query>{sql}</query>", f"<result>{run(database, sql)}</result>"
        if not wrong or chance.random() < habits.stubborn:
            break
    yield f"<answer>{sql}</answer>", ""


def traces(questions: Sequence[dict], database: Database, tokenizer, habits: WarmStart) -> Iterator[tuple]:
    """Ids and labels of scripted rollouts without end, all kinds of questions equally often."""
    chance, pool = random.Random(habits.seed), tokenizer.convert_tokens_to_ids(names())
    renamed = set(pool)
    by_kind = {kind: [question for question in questions if question["kind"] == kind] for kind in KINDS}
    while True:
        question = chance.choice(by_kind[chance.choice(list(KINDS))])
        ids = tokenizer(question["question"])["input_ids"]
        labels = [IGNORED] * len(ids)
        for written, read in trace(chance, question, database, habits):
            written, read = (tokenizer(text)["input_ids"] for text in (written, read))
            ids, labels = ids + written + read, labels + written + [IGNORED] * len(read)
        found = [i for i in dict.fromkeys(ids) if i in renamed]
        new = dict(zip(found, chance.sample(pool, len(found)), strict=True))
        yield [new.get(i, i) for i in ids], [new.get(i, i) for i in labels]


def warm_up(model: LlamaForCausalLM, questions: Sequence[dict], database: Database, tokenizer, settings: WarmStart):
    """Train a model on traces; prints the loss now and then."""
    rows = traces(questions, database, tokenizer, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(1, settings.steps + 1):
        rate = min(step / 50, 1 - (step - 1) / settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        ids, labels = (
            pad_sequence([torch.tensor(row) for row in part], batch_first=True, padding_value=fill)
            for part, fill in zip(
                zip(*islice(rows, settings.traces), strict=True), (tokenizer.pad_token_id, IGNORED), strict=True
            )
        )
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"  step {step}/{settings.steps}: loss {loss.item():.2f}", flush=True)
