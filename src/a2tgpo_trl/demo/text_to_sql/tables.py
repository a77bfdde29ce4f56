"""Tables of the embedded facts, and questions about them with the query that answers each."""

import random
import re
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Kind:
    """
    One kind of question.

    Attributes:
        question (`str`): With `{}` for the name that it is about, as a SQL literal.
        sql (`str`): What answers it.
        mistake (`str`): What a careless writer would run instead.
        about (`str`): Query of the names that there are questions about, each with the country that it belongs to.
    """

    question: str
    sql: str
    mistake: str
    about: str


CITY_AND_COUNTRY = "SELECT name , country FROM city"
COUNTRIES_WITH_CITIES = "SELECT country , country FROM city GROUP BY country HAVING COUNT(*) > 2"
SHARED_CURRENCIES = "SELECT currency , MIN(name) FROM country GROUP BY currency HAVING COUNT(*) > 1"
OF_CITY = "FROM city JOIN country ON country.name = city.country WHERE city.name = {}"
KINDS = {
    "capital": Kind(
        "What is the capital of {} ?",
        "SELECT capital FROM country WHERE name = {}",
        "SELECT name FROM country WHERE capital = {}",
        "SELECT name , name FROM country WHERE capital IS NOT NULL",
    ),
    "cities": Kind(
        "Which cities are in {} ?",
        "SELECT name FROM city WHERE country = {}",
        "SELECT city FROM country WHERE name = {}",
        COUNTRIES_WITH_CITIES,
    ),
    "number_of_cities": Kind(
        "How many cities are in {} ?",
        "SELECT COUNT(*) FROM city WHERE country = {}",
        "SELECT name FROM city WHERE country = {}",
        COUNTRIES_WITH_CITIES,
    ),
    "capital_of_city": Kind(
        "What is the capital of the country where the city of {} is located ?",
        f"SELECT capital {OF_CITY}",
        "SELECT capital FROM city WHERE name = {}",
        CITY_AND_COUNTRY,
    ),
    "currency_of_city": Kind(
        "What is the currency of the country where the city of {} is located ?",
        f"SELECT currency {OF_CITY}",
        "SELECT currency FROM city WHERE name = {}",
        CITY_AND_COUNTRY,
    ),
    "users_of_currency": Kind(
        "Which countries use the currency {} , in alphabetical order ?",
        "SELECT name FROM country WHERE currency = {} ORDER BY name",
        "SELECT name FROM country WHERE currency = {}",
        SHARED_CURRENCIES,
    ),
    "country_of_airport": Kind(
        "Which country has the airport with the code {} ?",
        "SELECT country FROM airport JOIN city ON city.name = airport.city WHERE code = {}",
        "SELECT country FROM airport WHERE code = {}",
        "SELECT code , country FROM airport JOIN city ON city.name = airport.city",
    ),
    "currency_of_anthem": Kind(
        "What is the currency of the country whose national anthem is {} ?",
        "SELECT currency FROM anthem JOIN country ON country.name = anthem.country WHERE title = {}",
        "SELECT currency FROM country WHERE anthem = {}",
        "SELECT title , country FROM anthem",
    ),
}


def build_database(path: Path) -> Database:
    """Write the tables of the atlas into a new file: some 250 countries, 1,200 cities, 300 airports and 100 anthems."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for table, rows in read_tables().items():
            columns = TABLES[table]
            connection.execute(f"CREATE TABLE {table} ({', '.join(f'{column} TEXT' for column in columns)})")
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", rows)
    return Database(path, max_rows=2000)


def read_tables() -> dict[str, list[tuple]]:
    """Rows of each table, in the order of the passages; a country without a capital has `None`."""
    facts = defaultdict(list)
    for passage in load_atlas().passages:
        for form, pattern in SENTENCES.items():
            if found := re.fullmatch(pattern, passage["text"]):
                facts[form].append(found.groups())
    capitals = dict(facts["capital"])
    countries = [(name, capitals.get(name), currency) for name, currency in facts["currency"]]
    return {"country": countries, "city": facts["city"], "airport": facts["airport"], "anthem": facts["anthem"]}


def ask_questions(database: Database) -> list[dict]:
    """
    All questions, in mixed order.

    Args:
        database ([`Database`]): Of [`build_database`].

    Returns:
        `list[dict]`: `question`, `answer` (the query), `kind`, and `country`, to split by.
    """
    questions = [
        {"question": kind.question.format(name), "answer": kind.sql.format(name), "kind": label, "country": country}
        for label, kind in KINDS.items()
        for name, country in ((literal(name), country) for name, country in database.rows(kind.about))
    ]
    random.Random(0).shuffle(questions)
    return questions


def split_questions(questions: list[dict]) -> tuple[list[dict], list[dict]]:
    """Questions to train on, and questions about a fifth of the countries, which those are not about."""
    return split_by_entity(questions)
