"""Build `src/a2tgpo_trl/assets/atlas.json`: real facts as one-sentence passages, and questions of two or three hops.

    pip install pyworldatlas==0.10.0 airportsdata==20260905 bm25s
    python scripts/build_atlas.py

A question names an entity (a city, a capital, an anthem, an airport) and asks for the capital or the currency of its
country, which it does not name. It is kept if it takes the hops it claims, under BM25 with one passage a search:

- searching the title of each supporting passage finds that passage,
- one search with the question itself does not find the answer,
- neither the question nor a passage before the last one holds the answer, and the entity does not name its country.

Within a kind no answer may hold more than `MAX_ANSWER_SHARE` of the questions, so that guessing the commonest currency
does not pay. The result depends on nothing but the installed data: no randomness, no clock.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import airportsdata
import pyworldatlas

from a2tgpo_trl.rewards import normalize_answer
from a2tgpo_trl.search import BM25Search

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "a2tgpo_trl" / "assets" / "atlas.json"
CITIES_PER_COUNTRY = 10
AIRPORTS_PER_COUNTRY = 2
MAX_ANSWER_SHARE = 0.05
MAX_ANTHEM_WORDS = 5
ATTRIBUTION = (
    "Compiled with pyworldatlas 0.10.0 (MIT License, (c) 2026 PyWorldAtlas maintainers) and airportsdata "
    "(MIT License, (c) 2020- Mike Borsetti). "
    "Cities, capitals and countries: GeoNames (https://www.geonames.org), licensed under CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), selected and rewritten as sentences. National anthems: the CIA "
    "World Factbook, public domain. Currency names: Unicode CLDR, Unicode License v3 "
    "(https://www.unicode.org/license.txt), shortened where the last word is unique. Airport codes: airportsdata. "
    "The facts are those of the sources at their dates and may be out of date."
)
QUESTIONS = {
    "city_capital": "What is the capital of the country where the city of {} is located?",
    "city_currency": "What is the currency of the country where the city of {} is located?",
    "capital_currency": "What is the currency of the country whose capital is {}?",
    "anthem_currency": 'What is the currency of the country whose national anthem is "{}"?',
    "airport_currency": "What is the currency of the country where the airport with the code {} is located?",
}
WITH_THE = re.compile(
    r"^(United|Democratic Republic|Republic|Central African|Dominican|British|U\.S\.)"
    r"|^(Bahamas|Gambia|Philippines|Maldives|Comoros|Isle of Man)$"
    r"|^(?!Heard|South Georgia).*(Islands|Territory|Territories)$"
)
DISPUTED_CAPITALS = {"IL", "PS"}  # the sources name one; the file takes no side
OTHER_ANSWERS = {"Washington": ["Washington, D.C."]}
NOT_SHORTENED = {"Zimbabwean Gold"}  # "the Gold" would read as the metal


@dataclass
class Corpus:
    """Passages by title, and the questions asked about them so far."""

    passages: dict[str, str] = field(default_factory=dict)
    questions: list[dict] = field(default_factory=list)

    def add_passage(self, title: str, text: str) -> bool:
        """Add a passage unless its title is taken; say whether it is there now with this text."""
        return self.passages.setdefault(title, text) == text

    def ask(self, kind: str, answer: list[str], country: str, supports: list[str]):
        """Ask about the entity that the first support is about."""
        question = QUESTIONS[kind].format(supports[0])
        row = {"question": question, "answer": answer, "kind": kind, "country": country, "supports": supports}
        self.questions.append(row)


def fold(text: str) -> str:
    """Write a name in lower case, without accents, its apostrophes straight."""
    decomposed = unicodedata.normalize("NFKD", re.sub("[‘’ʻʼ]", "'", text))
    return "".join(character for character in decomposed if not unicodedata.combining(character)).lower()


def in_prose(country: str) -> str:
    """Give a country's name the article that it takes in a sentence."""
    if country.startswith("The "):
        return f"the {country[4:]}"
    return f"the {country}" if WITH_THE.search(country) else country


def is_latin(name: str) -> bool:
    """Say whether a name keeps to Latin-1; small tokenizers spell what lies beyond it byte by byte."""
    return all(ord(character) < 256 for character in name)


def contains(text: str, phrase: str) -> bool:
    """Say whether the words of `phrase` stand in `text` one after another, as the exact-match reward compares them."""
    return f" {normalize_answer(fold(phrase))} " in f" {normalize_answer(fold(text))} "


def names_country(entity: str, country: str) -> bool:
    """Say whether an entity's name gives its country away ("Angola Avante", "Panama City")."""
    words = [word for word in re.findall(r"\w+", fold(country)) if len(word) > 3]
    return any(word in fold(entity) for word in words)


def with_aliases(name: str, *others: str) -> list[str]:
    """List the spellings of an answer that differ after normalisation, the canonical one first."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c)).replace("ʻ", "'")
    spellings: dict[str, str] = {}
    for spelling in [name, *others, plain]:
        spellings.setdefault(normalize_answer(spelling), spelling)
    return list(spellings.values())


def short_currencies(names: Iterable[str]) -> dict[str, str]:
    """Shorten each currency to its last word where no other currency shares it: "Lek", but "Mexican Peso"."""
    last_words = Counter(fold(name.split()[-1]) for name in set(names))

    def shorten(name: str) -> str:
        last = name.split()[-1]
        return last.capitalize() if last_words[fold(last)] == 1 and name not in NOT_SHORTENED else name

    return {name: shorten(name) for name in names}


def entities_of_one_country(pairs: Iterable[tuple[str, str]]) -> set[str]:
    """Keep the folded names that belong to one country only."""
    countries = defaultdict(set)
    for entity, country in pairs:
        countries[fold(entity)].add(country)
    return {entity for entity, where in countries.items() if len(where) == 1}


def in_fixed_order(items: Iterable, name=str) -> list:
    """Shuffle the same way everywhere: by the hash of each item's name."""
    return sorted(items, key=lambda item: hashlib.sha256(name(item).encode()).hexdigest())


def add_countries(corpus: Corpus, countries: list) -> dict[str, dict[str, list[str]]]:
    """Add the capital and the currency of each country; return the answers by country and property."""
    short = short_currencies([country.currency.name for country in countries if country.currency])
    answers = defaultdict(dict)
    for country in countries:
        where = in_prose(country.name)
        if country.capitals and country.alpha2 not in DISPUTED_CAPITALS:
            capital = country.capitals[0].name.strip()
            corpus.add_passage(f"Capital of {where}", f"The capital of {where} is {capital}.")
            answers[country.name]["capital"] = with_aliases(capital, *OTHER_ANSWERS.get(capital, []))
        if country.currency:
            full = country.currency.name
            corpus.add_passage(f"Currency of {where}", f"The currency of {where} is the {short[full]}.")
            answers[country.name]["currency"] = with_aliases(short[full], full)
    return answers


def add_cities(corpus: Corpus, countries: list, answers: dict) -> dict[tuple[str, str], str]:
    """Add each capital and the largest other cities of its country; return them by (alpha-2 code, folded name)."""
    unambiguous = entities_of_one_country(
        [(city.name, country.name) for country in countries for city in (*country.major_cities, *country.capitals)]
        + [(country.name, f"the country {country.name}") for country in countries]
    )
    added = {}
    for country in countries:
        names = dict.fromkeys(city.name for city in (*country.capitals, *country.major_cities))
        usable = [
            name
            for name in names
            if fold(name) in unambiguous and is_latin(name) and not names_country(name, country.name)
        ]
        official = {capital.name for capital in country.capitals}
        capitals = [name for name in usable if name in official]
        others = [name for name in usable if name not in official][:CITIES_PER_COUNTRY]
        for name in capitals + others:
            if corpus.add_passage(name, f"{name} is a city in {in_prose(country.name)}."):
                added[country.alpha2, fold(name)] = name
                for kind in ["capital_currency"] if name in official else ["city_capital", "city_currency"]:
                    ask_about(corpus, kind, country.name, answers, [name])
    return added


def ask_about(corpus: Corpus, kind: str, country: str, answers: dict, hops: list[str]):
    """Ask for the capital or the currency of the country that an entity, the first of the hops, leads to."""
    asked = kind.split("_")[1]
    if asked in answers[country]:
        corpus.ask(kind, answers[country][asked], country, [*hops, f"{asked.capitalize()} of {in_prose(country)}"])


def add_anthems(corpus: Corpus, countries: list, answers: dict):
    """Add national anthems with short titles of their own."""
    anthems = [(anthem.title, country.name) for country in countries for anthem in country.anthems]
    unambiguous = entities_of_one_country(anthems)
    for title, country in anthems:
        odd = re.search(r'["“”\[\]();:]', title) or len(title.split()) > MAX_ANTHEM_WORDS or not is_latin(title)
        if odd or fold(title) not in unambiguous or names_country(title, country):
            continue
        if corpus.add_passage(title, f"{title} is the national anthem of {in_prose(country)}."):
            ask_about(corpus, "anthem_currency", country, answers, [title])


def add_airports(corpus: Corpus, countries: list, cities: dict, answers: dict):
    """Add one airport for some of the cities, by its IATA code: airport → city → country takes two hops."""
    names = {country.alpha2: country.name for country in countries}
    first_code: dict[tuple[str, str], str] = {}
    for code, airport in sorted(airportsdata.load("IATA").items()):
        first_code.setdefault((airport["country"], fold(airport["city"])), code)
    taken = Counter()
    for place, city in cities.items():
        code, country = first_code.get(place), names[place[0]]
        if code is None or taken[country] == AIRPORTS_PER_COUNTRY:
            continue
        if corpus.add_passage(code, f"{code} is the code of the airport of {city}."):
            taken[country] += 1
            ask_about(corpus, "airport_currency", country, answers, [code, city])


def takes_its_hops(question: dict, corpus: Corpus, tool: BM25Search) -> bool:
    """Say whether searching each support finds it and the answer stands nowhere before the last of them."""
    early = [question["question"], *(corpus.passages[title] for title in question["supports"][:-1])]
    if any(contains(text, answer) for text in early for answer in question["answer"]):
        return False
    found = tool.retrieve(question["supports"])
    return all(hits and hits[0]["title"] == title for hits, title in zip(found, question["supports"], strict=True))


def answered_by_one_search(question: dict, tool: BM25Search) -> bool:
    """Say whether searching the question itself finds a passage with the answer."""
    (hits,) = tool.retrieve([question["question"]])
    return any(contains(hit["text"], answer) for hit in hits for answer in question["answer"])


def cap_answers(questions: list[dict]) -> list[dict]:
    """Drop the last questions with an answer, a kind at a time, until no answer exceeds its share."""
    kept = []
    for kind in QUESTIONS:
        rows = [question for question in questions if question["kind"] == kind]
        counts = Counter(row["answer"][0] for row in rows)
        limit = largest_limit(counts)
        seen = Counter()
        for row in rows:
            seen[row["answer"][0]] += 1
            if seen[row["answer"][0]] <= limit:
                kept.append(row)
    return kept


def largest_limit(counts: Counter) -> int:
    """Find the greatest number of questions an answer may have within `MAX_ANSWER_SHARE` of those that remain."""
    for limit in range(max(counts.values()), 1, -1):
        if limit <= MAX_ANSWER_SHARE * sum(min(count, limit) for count in counts.values()):
            return limit
    return 1


def build() -> dict:
    """Collect, filter and order everything that goes into the file."""
    with pyworldatlas.Atlas() as source:
        countries = sorted(source.countries(), key=lambda country: country.alpha2)
        countries = [country for country in countries if "," not in country.name]  # lists of islands
        corpus = Corpus()
        answers = add_countries(corpus, countries)
        cities = add_cities(corpus, countries, answers)
        add_anthems(corpus, countries, answers)
        add_airports(corpus, countries, cities, answers)
    passages = [{"title": title, "text": text} for title, text in in_fixed_order(corpus.passages.items())]
    tool = BM25Search(passages, top_k=1)
    candidates = in_fixed_order(corpus.questions, name=lambda question: question["question"])
    good = [question for question in candidates if takes_its_hops(question, corpus, tool)]
    print_shares(candidates, good, tool)
    multi_hop = [question for question in good if not answered_by_one_search(question, tool)]
    questions = in_fixed_order(cap_answers(multi_hop), name=lambda question: question["question"])
    print_kept(questions, BM25Search(passages, top_k=3))
    return {"attribution": ATTRIBUTION, "passages": passages, "questions": questions}


def print_shares(candidates: list[dict], good: list[dict], tool: BM25Search):
    """Print, by kind, how many candidates take their hops and how many of those one search answers."""
    print("kind, candidates, take their hops, of those answered by one search (top 1)")
    for kind in QUESTIONS:
        all_of_kind = [question for question in candidates if question["kind"] == kind]
        rows = [question for question in good if question["kind"] == kind]
        single = sum(answered_by_one_search(question, tool) for question in rows)
        print(f"{kind}, {len(all_of_kind)}, {len(rows) / len(all_of_kind):.3f}, {single / len(rows):.3f}")


def print_kept(questions: list[dict], tool: BM25Search):
    """Print, by kind, what is kept: questions, countries, the commonest answer, and how a wider search would do."""
    print("kind, kept, countries, answers, commonest answer, its share, answered by one search (top 3)")
    for kind in [*QUESTIONS, ""]:
        rows = [question for question in questions if question["kind"].startswith(kind)]
        counts = Counter(row["answer"][0] for row in rows)
        answer, count = counts.most_common(1)[0]
        single = sum(answered_by_one_search(question, tool) for question in rows) / len(rows)
        where = len({row["country"] for row in rows})
        print(f"{kind or 'all'}, {len(rows)}, {where}, {len(counts)}, {answer}, {count / len(rows):.3f}, {single:.3f}")


def main():
    """Write the file."""
    text = json.dumps(build(), ensure_ascii=False, separators=(",", ":"))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(text + "\n", encoding="utf-8")
    print(f"{OUTPUT.name}: {len(text.encode()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
