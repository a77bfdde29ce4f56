"""The policy that training starts from: a tiny model, taught by scripted traces how a careless writer of SQL goes about it.

A trace often begins with the mistake of its kind of question, sometimes without running it, and often answers with a query that
has just failed. Names in a trace are replaced by other names, drawn anew for each: what is learned is to copy them.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ...sql import Database, QueryError
from .tables import KINDS, evenly, split_questions

PAD, END = "<pad>", "<end>"
UNKNOWN = "abcdef"
"""The word that transformers puts before each token to see what a stop string can match: it has to be one."""
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
        unchecked (`float`): Share of drafts that are answered with before they are run.
        stubborn (`float`): Share of drafts that are answered with although they were run and are wrong.
        steps (`int`): Optimizer steps.
        traces (`int`): In each step.
        learning_rate (`float`): Peak, with warm-up and linear decay.
        seed (`int`): Of the first weights and the traces.
    """

    unchecked: float = 0.3
    stubborn: float = 0.6
    steps: int = 300
    traces: int = 32
    learning_rate: float = 6e-3
    seed: int = 0


def make_tokenizer(questions: Sequence[dict], database: Database) -> PreTrainedTokenizerFast:
    """One token a word of questions, queries and errors, and one a name that there is a question about; the rest is unknown."""
    queries = [query for kind in KINDS for query in (kind.sql, *kind.mistakes)]
    texts = [*(kind.question for kind in KINDS), *queries, *(run(database, query.format("''")) for query in queries)]
    texts += ["and more", " ".join(map(str, range(50))), *names(questions)]
    split = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    words = [word for text in texts for word, _ in split.pre_tokenize_str(text)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([PAD, END, UNKNOWN, *TAGS, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def names(questions: Sequence[dict]) -> list[str]:
    """The names that the questions are about."""
    return sorted({question["name"] for question in questions})


def run(database: Database, sql: str) -> str:
    """What the model reads of a query."""
    try:
        return database.query(sql)
    except QueryError as error:
        return str({"error": str(error)})


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A random model of 220,000 parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def trace(chance: random.Random, question: dict, database: Database, habits: WarmStart) -> Iterator[tuple[str, str]]:
    """A scripted rollout: what is written in each turn, and what is read after it."""
    kind = KINDS[question["kind"]]
    drafts = [kind.sql, *kind.mistakes]
    for draft in chance.sample(drafts, len(drafts)):
        sql = draft.format(question["name"])
        if chance.random() < habits.unchecked:
            break
        yield f"<query>{sql}</query>", f"<result>{run(database, sql)}</result>"
        if draft == kind.sql or chance.random() < habits.stubborn:
            break
    yield f"<answer>{sql}</answer>", ""


def traces(
    questions: Sequence[dict], others: Sequence[str], database: Database, tokenizer, habits: WarmStart
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of scripted rollouts without end, in which names are replaced by `others`."""
    chance, pool = random.Random(habits.seed), tokenizer.convert_tokens_to_ids(others)
    while True:
        question = chance.choice(questions)
        ids = tokenizer(question["question"])["input_ids"]
        labels = [IGNORED] * len(ids)
        for written, read in trace(chance, question, database, habits):
            written, read = (tokenizer(text)["input_ids"] for text in (written, read))
            ids, labels = ids + written + read, labels + written + [IGNORED] * len(read)
        found = [i for i in dict.fromkeys(ids) if i in pool]
        new = dict(zip(found, chance.sample(pool, len(found)), strict=True))
        yield [new.get(i, i) for i in ids], [new.get(i, i) for i in labels]


def warm_up(folder: Path, questions: Sequence[dict], database: Database, settings: WarmStart = WarmStart()) -> Path:
    """
    Train a model on scripted rollouts into a folder, unless it is there.

    Args:
        folder (`Path`): For the model and its tokenizer.
        questions (`Sequence[dict]`): All of them: the rollouts are about those to train on, under the names of any.
        database ([`Database`]): Which the rollouts query.
        settings ([`WarmStart`], *optional*): How they go, and how long it takes.

    Returns:
        `Path`: the folder.
    """
    if folder.is_dir():
        return folder
    tokenizer = make_tokenizer(questions, database)
    model = make_model(tokenizer, settings.seed)
    asked = evenly(split_questions(questions)[0], len(questions))
    train(model, traces(asked, names(questions), database, tokenizer, settings), settings)
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return folder


def train(model: LlamaForCausalLM, rows: Iterator[tuple[list[int], list[int]]], settings: WarmStart) -> None:
    """Supervised training; prints the loss now and then."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(1, settings.steps + 1):
        rate = min(step / 50, 1 - (step - 1) / settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        loss = loss_of(model, *zip(*islice(rows, settings.traces), strict=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"  step {step}/{settings.steps}: loss {loss.item():.2f}", flush=True)


def loss_of(model: LlamaForCausalLM, ids: Sequence[list[int]], labels: Sequence[list[int]]) -> torch.Tensor:
    """Mean cross-entropy of what is written; only there are logits computed."""
    ids, labels = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
        for rows, fill in ((ids, model.config.pad_token_id), (labels, IGNORED))
    )
    hidden, targets = model.model(input_ids=ids).last_hidden_state[:, :-1], labels[:, 1:]
    learned = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), targets[learned])
