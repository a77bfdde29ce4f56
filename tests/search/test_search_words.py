"""Words of BM25 in any script, and that memory, index and retriever count the same ones."""

import doctest
import json

import pytest

from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.search import BM25Search, HTTPSearch, words
from a2tgpo_trl.search.rendering import render
from a2tgpo_trl.search.server import make_app
from a2tgpo_trl.search.words import ENGLISH, passage_words, query_words
from serving import serving

TEXTS = {
    "zh": "法国的首都是巴黎。",
    "zh, other": "日本的货币是日元。",
    "ja": "プログラミング言語はコンピュータで使う。",
    "ja, marks": "ガラスの靴",
    "ko": "프랑스의 수도는 파리이다.",
    "th": "ประเทศไทยมีเมืองหลวงชื่อกรุงเทพมหานคร",
    "hi": "फ़्रांस की राजधानी पेरिस है।",
    "hi, other": "जापान की मुद्रा येन है।",
    "ta": "பிரான்சின் தலைநகரம் பாரிஸ்",
    "km": "ភ្នំពេញជារាជធានី",
    "my": "ရန်ကုန်သည် မြို့ဖြစ်သည်။",
    "el": "Η πρωτεύουσα της Ελλάδας είναι η Αθήνα.",
    "ru": "Столица России — Москва, её ёлка.",
    "vi": "Thủ đô của Việt Nam là Hà Nội.",
    "tr": "İstanbul bir şehirdir.",
    "apollo 7": "Apollo 7 was a mission.",
    "apollo 9": "Apollo 9 was a mission.",
    "vitamin d": "Vitamin D comes from the sun.",
    "vitamin k": "Vitamin K comes from cabbage.",
    "vitamin a": "Vitamin A comes from carrots, which are orange.",
    "vitamin b": "A vitamin is a substance: vitamin B is a vitamin. A bean has a lot of it.",
    "ar": "عاصمة فرنسا باريس",
    "mixed": "iPhone手机发布于3月",
}
QUERIES = [
    ("法国的首都", "zh"),
    ("日元", "zh, other"),
    ("货", "zh, other"),
    ("プログラミング", "ja"),
    ("ﾌﾟﾛｸﾞﾗﾐﾝｸﾞ", "ja"),
    ("ガラス", "ja, marks"),
    ("프랑스", "ko"),
    ("เมืองหลวง", "th"),
    ("फ़्रांस", "hi"),
    ("मुद्रा", "hi, other"),
    ("பாரிஸ்", "ta"),
    ("ភ្នំពេញ", "km"),
    ("ရန်ကုန်", "my"),
    ("αθηνα", "el"),
    ("елка", "ru"),
    ("ha noi", "vi"),
    ("istanbul", "tr"),
    ("Apollo 7", "apollo 7"),
    ("Apollo 9", "apollo 9"),
    ("vitamin d", "vitamin d"),
    ("vitamin K", "vitamin k"),
    ("vitamin A", "vitamin a"),
    ("Is vitamin B a vitamin?", "vitamin b"),
    ("باريس", "ar"),
    ("手机", "mixed"),
    ("iphone", "mixed"),
]
PASSAGES = [{"text": text, "key": key} for key, text in TEXTS.items()]


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """The same passages in memory, in an index, and behind a port: for a query the key of the best."""
    folder = tmp_path_factory.mktemp("words")
    lines = [json.dumps(passage, ensure_ascii=False) + "\n" for passage in PASSAGES]
    (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    BM25Search.build(folder / "corpus.jsonl", folder / "index")
    memory, index = BM25Search(PASSAGES), BM25Search.load(folder / "index")
    with serving(make_app(BM25Search.load(folder / "index"))) as port:
        yield [memory, index, HTTPSearch(f"http://127.0.0.1:{port}/retrieve")]


@pytest.mark.parametrize(("query", "key"), QUERIES)
def test_every_script_is_found(searches, query, key):
    for search in searches:
        assert [passage["text"] for passage in search.retrieve([query])[0]][:1] == [TEXTS[key]]


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("法国的首都", ["法国", "国的", "的首", "首都"]),
        ("猫", ["猫"]),
        ("猫、犬。", ["猫", "犬"]),
        ("レオナルド・ダ・ヴィンチ", ["レオ", "オナ", "ナル", "ルド", "ダ", "ヴィ", "ィン", "ンチ"]),
        ("3月 iPhone手机", ["3", "月", "iphone", "手机"]),
        ("がが", ["がが"]),
        ("ｶﾞｶﾞ", ["ガガ"]),
        ("葛\U000e0100城", ["葛城"]),
        ("น้ำ", ["น้ํา"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("क्\u200dष", ["क्ष"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("Apollo 9", ["apollo", "9"]),
        ("Lyon's isn't we'll O'Reilly D'Artagnan", ["lyon", "isn", "we", "o", "reilly", "d", "artagnan"]),
        ("Lyon’s Côte d’Azur", ["lyon", "cote", "d", "azur"]),
        ("snake_case C++ 3.14", ["snake_case", "c", "3", "14"]),
        ("Brasi\u0301lia, ĐÀ NẴNG, İstanbul", ["brasilia", "đa", "nang", "istanbul"]),
        ("Ἀθῆναι ΟΔΌΣ Йод", ["αθηναι", "οδος", "иод"]),
        ("❤\ufe0f \U0001f1eb\U0001f1f7 —“”…", []),
        ("\ud800", []),
        ("the of Α", ["α"]),
        ("Hepatitis A", ["hepatitis", "a"]),
        ("Is Vitamin A a vitamin? A carrot's.", ["vitamin", "a", "vitamin", "carrot"]),
        ("A river: A lake.\n“A sea” a's hepatitis a", ["river", "lake", "sea", "hepatitis"]),
        ("A.B.C. Å, å", ["a", "b", "c", "a"]),
    ],
)
def test_words(text, split):
    assert query_words(text) == split


def test_a_passage_has_each_character_too():
    assert passage_words("東京都 city") == ["東", "京", "都", "東京", "京都", "city"]
    assert passage_words("Where is Lyon?") == query_words("Where is Lyon?")


def test_latin_words_are_what_they_were():
    """As bm25s splits plain text, single characters and contracted endings aside."""
    bm25s = pytest.importorskip("bm25s")
    texts = [passage["text"] for passage in load_atlas().passages if passage["text"].isascii()]
    texts += [question["question"] for question in load_atlas().questions if question["question"].isascii()]
    assert len(texts) > 1000 and set(bm25s.stopwords.STOPWORDS_EN) == ENGLISH | {"a"}
    before = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    for text, theirs in zip(texts, before, strict=True):
        assert [word for word in query_words(text) if len(word) > 1] == theirs


def test_the_example():
    assert doctest.testmod(words) == (0, 1)


def test_texts_without_spaces_are_cut():
    def cut(text, max_words):
        return render([{"title": "", "text": text}], False, max_words, False)

    assert cut("法国的首都是巴黎。", 3) == "法国的 …"
    assert cut("法国，首都。", 2) == "法国， …"
    assert cut("法国，首都。", 4) == "法国，首都。"
    assert cut("เมืองหลวง", 2) == "เมื …"
    assert cut("Lyon is a city, in 法国", 4) == "Lyon is a city, …"
    assert cut("one (two) three", 3) == "one (two) three"
