"""Rewards of question answering: exact match, token F1 and format, as TRL reward functions.

A model answers between `<answer>` and `</answer>` in its last turn, or by calling the tool `finish`. In a completion made of messages that is the last
assistant message; in one that is a text, what follows the last `<result>…</result>`, where the observations of the
text protocol stand, or what stands before it if nothing follows. A passage that holds `<answer>…</answer>` earns
nothing. That a passage cannot pose as several observations is for the protocol to see to, which escapes its tags in
results.
"""

import re
import string
import unicodedata
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# An observation goes on to the last closing tag before the next opening one, so that a closing tag inside a passage
# does not end it early; one that is never closed goes on to the end of the text.
_RESULT = re.compile(r"<result>(?:.*?</result>(?:(?:(?!<result>).)*</result>)?|.*\Z)", re.DOTALL)


def normalize_answer(text: str) -> str:
    """Write an answer in the form in which SQuAD compares answers.

    Lower case, no punctuation, no articles (a, an, the), one space between words. Beyond SQuAD's ASCII, compatible
    Unicode forms are unified (NFKC) and all Unicode punctuation goes; accents stay.

    Args:
        text (`str`):
            An answer.

    Returns:
        `str`: the normalised answer, empty if nothing is left of it.

    Example:

    ```python
    >>> normalize_answer("The  “Côte d’Ivoire”!")
    'côte divoire'

    ```
    """
    lowered = unicodedata.normalize("NFKC", text).lower()
    without_punctuation = "".join(character for character in lowered if not _is_punctuation(character))
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def exact_match(prediction: str, answers: str | list[str]) -> float:
    """Say whether a prediction equals one of the answers after normalisation.

    Args:
        prediction (`str`):
            What the model answered. One that is empty after normalisation matches nothing.
        answers (`str` or `list[str]`):
            The answer, or its aliases.

    Returns:
        `float`: 1 or 0.
    """
    predicted = normalize_answer(prediction)
    return float(bool(predicted) and any(predicted == normalize_answer(answer) for answer in _as_list(answers)))


def token_f1(prediction: str, answers: str | list[str]) -> float:
    """Compare the words of a prediction with those of the answers.

    Args:
        prediction (`str`):
            What the model answered.
        answers (`str` or `list[str]`):
            The answer, or its aliases, of which the best counts.

    Returns:
        `float`: the harmonic mean of precision and recall over normalised words, between 0 and 1.
    """
    predicted = normalize_answer(prediction).split()
    return max((_f1(predicted, normalize_answer(answer).split()) for answer in _as_list(answers)), default=0.0)


def extract_answer(text: str, tag: str = "answer") -> str | None:
    """Find the last complete answer in a text.

    Args:
        text (`str`):
            What the model wrote.
        tag (`str`, *optional*, defaults to `"answer"`):
            Name of the tag around the answer.

    Returns:
        `str` or `None`: what stands between the last `<tag>` that is closed and its `</tag>`, without the white space
        around it; `None` if there is no such pair.
    """
    name = re.escape(tag)
    found = re.findall(rf"<{name}>((?:(?!<{name}>).)*?)</{name}>", text, re.DOTALL)
    return found[-1].strip() if found else None


def exact_match_reward(
    completions: list[str] | list[list[dict]], answer: list[str] | list[list[str]], **kwargs
) -> list[float | None]:
    """Reward completions whose answer is right.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or lists of messages; the model's last turn must hold the answer.
        answer (`list[str]` or `list[list[str]]`):
            The dataset's `answer` column: for each completion its answer or the aliases of it. For a column of another
            name, pass a function of that name's argument which calls this one.
        **kwargs:
            The other columns, of which `prompts` names the row in an error.

    Returns:
        `list[float | None]`: 1 for a right answer, 0 for a wrong or missing one, `None` where the row has no answer.

    Raises:
        `ValueError`: an answer is neither text nor a list of texts.
    """
    return _reward(exact_match, completions, answer, kwargs.get("prompts"))


def f1_reward(
    completions: list[str] | list[list[dict]], answer: list[str] | list[list[str]], **kwargs
) -> list[float | None]:
    """Reward completions by the words their answer shares with the right one.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or lists of messages; the model's last turn must hold the answer.
        answer (`list[str]` or `list[list[str]]`):
            The dataset's `answer` column: for each completion its answer or the aliases of it. For a column of another
            name, pass a function of that name's argument which calls this one.
        **kwargs:
            The other columns, of which `prompts` names the row in an error.

    Returns:
        `list[float | None]`: the token F1, 0 if the answer is missing, `None` where the row has no answer.

    Raises:
        `ValueError`: an answer is neither text nor a list of texts.
    """
    return _reward(token_f1, completions, answer, kwargs.get("prompts"))


def format_reward(completions: list[str] | list[list[dict]], **kwargs) -> list[float]:
    """Reward completions that end with their only answer, whether it is right or not.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or lists of messages.
        **kwargs:
            The dataset's columns, which are not used.

    Returns:
        `list[float]`: 1 if the model wrote exactly one `<answer>` and one `</answer>`, in this order, with something
        between them and nothing but white space after them; else 0.
    """
    return [float(_ends_with_its_only_answer(completion)) for completion in completions]


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _as_list(answers: str | list[str] | None, where: str = "answers") -> list[str]:
    aliases = [] if answers is None else [answers] if isinstance(answers, str) else answers
    if not isinstance(aliases, (list, tuple)) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where} must be text or a list of aliases, got {answers!r}; an alias is a text.")
    return list(aliases)


def _f1(predicted: list[str], expected: list[str]) -> float:
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def _reward(score, completions, answer, prompts) -> list[float | None]:
    """Score each completion's answer by `score(prediction, answers)`."""
    rewards = []
    for i, (completion, answers) in enumerate(zip(completions, answer, strict=True)):
        where = f"'answer' of completion {i}" + (f", to {prompts[i]!r}," if prompts else "")
        aliases = [alias for alias in _as_list(answers, where) if alias.strip()]
        prediction = extract_answer(_last_turn(completion)) or ""
        rewards.append(score(prediction, aliases) if aliases else None)
    return rewards


def _turns(completion: str | list[dict]) -> list[str | None]:
    """List what the model wrote turn by turn, with `None` for what others wrote."""
    if isinstance(completion, str):
        first, *others = _RESULT.split(completion)
        turns = [first, *(turn for other in others for turn in (None, other))]
        return [turn for turn in turns if turn is None or turn.strip()]
    return [_content(message) if message.get("role") == "assistant" else None for message in completion]


def _last_turn(completion: str | list[dict]) -> str:
    own = [turn for turn in _turns(completion) if turn is not None]
    return own[-1] if own else ""


def _ends_with_its_only_answer(completion: str | list[dict]) -> bool:
    turns = _turns(completion)
    if not turns or turns[-1] is None:
        return False
    written = "".join(turn for turn in turns if turn is not None)
    only_one = written.count("<answer>") == 1 and written.count("</answer>") == 1
    return only_one and turns[-1].rstrip().endswith("</answer>") and bool(extract_answer(turns[-1]))


def _content(message: dict) -> str:
    """Read a message's text, whether it is a text, absent, or a list of parts; and the answer that it calls `finish` with."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
    calls = [call.get("function") or {} for call in message.get("tool_calls") or []]
    arguments = [call.get("arguments") for call in calls if call.get("name") == "finish"]
    answers = [given["answer"] for given in arguments if isinstance(given, dict) and "answer" in given]
    return "".join([text, *(f"<answer>{answer}</answer>" for answer in answers)])
