"""Tables of the embedded facts, and questions about them with the query that answers each."""

import os
import random
import re
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from ...data import load_atlas, split_by_entity
from ...sql import Database
from ...sql.database import literal

TABLES = {
    "country": ("name", "capital", "currency"),
    "city": ("name", "country"),
    "airport": ("code", "city"),
    "anthem": ("title", "country"),
}
SENTENCES = {
    "city": r"(.+) is a city in (?:the )?(.+)\.",
    "capital": r"The capital of (?:the )?(.+) is (.+)\.",
    "currency": r"The currency of (?:the )?(.+) is the (.+)\.",
    "airport": r"(.+) is the code of the airport of (.+)\.",
    "anthem": r"(.+) is the national anthem of (?:the )?(.+)\.",
}
"""Forms of the atlas' passages, which are of one of them each."""
NAMES_OF_A_TABLE = 60
"""That there are questions about: a tiny model learns few names faster."""


@dataclass(frozen=True)
class Kind:
    """
    One kind of question. Kinds share the words of their question where these do not tell in which table the name stands.

    Attributes:
        question (`str`): With `{}` for the name that it is about, as a SQL literal.
        sql (`str`): What answers it.
        mistakes (`tuple[str, ...]`): What a careless writer may run instead.
        about (`str`): Query of the names that there are questions about, each with the country that it belongs to.
    """

    question: str
    sql: str
    mistakes: tuple[str, ...]
    about: str


COUNTRIES = "SELECT name, name FROM country"
CITIES = "SELECT name, country FROM city"
AIRPORTS = "SELECT code, country FROM airport JOIN city ON city.name = airport.city"
ANTHEMS = "SELECT title, country FROM anthem"
LARGER_COUNTRIES = "SELECT country, country FROM city GROUP BY country HAVING COUNT(*) > 2"
CURRENCIES = "SELECT currency, currency FROM country GROUP BY currency HAVING COUNT(*) > 1"

COUNTRY_OF = {
    CITIES: "SELECT country FROM city WHERE name = {}",
    AIRPORTS: "SELECT country FROM airport JOIN city ON city.name = airport.city WHERE code = {}",
    ANTHEMS: "SELECT country FROM anthem WHERE title = {}",
}
CURRENCY_OF = {
    COUNTRIES: "SELECT currency FROM country WHERE name = {}",
    CITIES: "SELECT currency FROM city JOIN country ON country.name = city.country WHERE city.name = {}",
    ANTHEMS: "SELECT currency FROM anthem JOIN country ON country.name = anthem.country WHERE title = {}",
}


def _alike(question: str, queries: dict[str, str], error: str) -> list[Kind]:
    """Kinds of one question, each with the queries of the others for mistakes, and one that fails."""
    everything = (*queries.values(), error)
    return [Kind(question, sql, tuple(q for q in everything if q != sql), about) for about, sql in queries.items()]


KINDS = [
    *_alike("Which country does {} belong to ?", COUNTRY_OF, "SELECT country FROM airport WHERE code = {}"),
    *_alike("Which currency goes with {} ?", CURRENCY_OF, "SELECT currency FROM city WHERE name = {}"),
    Kind(
        "How many cities are in {} ?",
        "SELECT COUNT(*) FROM city WHERE country = {}",
        ("SELECT name FROM city WHERE country = {}", "SELECT COUNT(*) FROM country WHERE city = {}"),
        LARGER_COUNTRIES,
    ),
    Kind(
        "Which countries use {} , in alphabetical order ?",
        "SELECT name FROM country WHERE currency = {} ORDER BY name",
        ("SELECT name FROM country WHERE currency = {}", "SELECT country FROM currency WHERE name = {}"),
        CURRENCIES,
    ),
]


def open_database(file: Path) -> Database:
    """The tables of the atlas, in a file that is written if it is not there: some 250 countries, 1,200 cities, 300 airports, 100 anthems."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        with closing(sqlite3.connect(partial)) as connection, connection:
            for table, rows in read_tables().items():
                columns = TABLES[table]
                connection.execute(f"CREATE TABLE {table} ({', '.join(f'{column} TEXT' for column in columns)})")
                connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", rows)
        partial.rename(file)
    return Database(file, max_rows=2000)


def read_tables() -> dict[str, list[tuple]]:
    """Rows of each table; a country without a capital has `None`. Countries stand in such an order that another one has to be asked for."""
    facts = defaultdict(list)
    for passage in load_atlas().passages:
        for form, pattern in SENTENCES.items():
            if found := re.fullmatch(pattern, passage["text"]):
                facts[form].append(found.groups())
    capitals = dict(facts["capital"])
    countries = [(name, capitals.get(name), currency) for name, currency in sorted(facts["currency"], reverse=True)]
    return {"country": countries, "city": facts["city"], "airport": facts["airport"], "anthem": facts["anthem"]}


def ask_questions(database: Database) -> list[dict]:
    """
    Questions about some of the names, in mixed order; none about names that stand in several tables.

    Args:
        database ([`Database`]): Of [`open_database`].

    Returns:
        `list[dict]`: `question`, `answer` (the query), `name`, a SQL literal, `kind`, an index of `KINDS`, and `country`, to
        split by.
    """
    pairs = {about: database.rows(about) for about in {kind.about for kind in KINDS}}
    times = Counter(name for about in (COUNTRIES, CITIES, AIRPORTS, ANTHEMS) for name, _ in pairs[about])
    questions = []
    for i, kind in enumerate(KINDS):
        unique = sorted(pair for pair in pairs[kind.about] if times[pair[0]] < 2)
        for name, country in random.Random(0).sample(unique, min(NAMES_OF_A_TABLE, len(unique))):
            texts = {"question": kind.question, "answer": kind.sql, "name": "{}"}
            filled = {key: text.format(literal(name)) for key, text in texts.items()}
            questions.append({**filled, "kind": i, "country": country})
    random.Random(0).shuffle(questions)
    return questions


def split_questions(questions: list[dict]) -> tuple[list[dict], list[dict]]:
    """Questions to train on, and questions about a quarter of the countries, which those are not about."""
    return split_by_entity(questions, held_out=0.25)


def evenly(questions: list[dict], number: int) -> list[dict]:
    """So many questions, of each kind in turn; they are asked again where there are too few of a kind."""
    kinds = [cycle([question for question in questions if question["kind"] == i]) for i in range(len(KINDS))]
    return [next(kinds[i % len(kinds)]) for i in range(number)]
