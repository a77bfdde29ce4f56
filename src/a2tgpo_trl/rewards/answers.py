"""Rewards of question answering: exact match, token F1 and format, as TRL reward functions.

A model answers between `<answer>` and `</answer>` in its last turn, or by calling the tool `finish` there. `A2TGPOTrainer` gives
reward functions the turns of each rollout, so that what a tool returned is never taken for an answer. Without `turns` they are
the assistant messages of a completion made of messages; of a text, what stands outside of `<result>…</result>`.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# An observation goes on to the last closing tag before the next opening one, so that a closing tag inside a passage
# does not end it early; one that is never closed goes on to the end of the text.
_RESULT = re.compile(r"(<result>(?:.*?</result>(?:(?:(?!<result>).)*</result>)?|.*\Z))", re.DOTALL)


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
    completions: list[str] | list[list[dict]],
    answer: list[str] | list[list[str]],
    turns: list[list[Any]] | None = None,
    **kwargs,
) -> list[float | None]:
    """Reward completions whose answer is right.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or lists of messages; the model's last turn must hold the answer.
        answer (`list[str]` or `list[list[str]]`):
            The dataset's `answer` column: for each completion its answer or the aliases of it. For a column of another
            name, pass a function of that name's argument which calls this one.
        turns (`list[list[Turn]]`, *optional*):
            The turns of each completion, as `A2TGPOTrainer` passes them.
        **kwargs:
            The other columns, of which `prompts` names the row in an error.

    Returns:
        `list[float | None]`: 1 for a right answer, 0 for a wrong or missing one, `None` where the row has no answer.

    Raises:
        `ValueError`: an answer is neither text nor a list of texts.
    """
    return _reward(exact_match, completions, answer, turns, kwargs.get("prompts"))


def f1_reward(
    completions: list[str] | list[list[dict]],
    answer: list[str] | list[list[str]],
    turns: list[list[Any]] | None = None,
    **kwargs,
) -> list[float | None]:
    """Reward completions by the words their answer shares with the right one.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or lists of messages; the model's last turn must hold the answer.
        answer (`list[str]` or `list[list[str]]`):
            The dataset's `answer` column: for each completion its answer or the aliases of it. For a column of another
            name, pass a function of that name's argument which calls this one.
        turns (`list[list[Turn]]`, *optional*):
            The turns of each completion, as `A2TGPOTrainer` passes them.
        **kwargs:
            The other columns, of which `prompts` names the row in an error.

    Returns:
        `list[float | None]`: the token F1, 0 if the answer is missing, `None` where the row has no answer.

    Raises:
        `ValueError`: an answer is neither text nor a list of texts.
    """
    return _reward(token_f1, completions, answer, turns, kwargs.get("prompts"))


def format_reward(
    completions: list[str] | list[list[dict]], turns: list[list[Any]] | None = None, **kwargs
) -> list[float]:
    """Reward completions that end with their only answer, whether it is right or not.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or lists of messages.
        turns (`list[list[Turn]]`, *optional*):
            The turns of each completion, as `A2TGPOTrainer` passes them.
        **kwargs:
            The dataset's columns, which are not used.

    Returns:
        `list[float]`: 1 if the model wrote exactly one `<answer>` and one `</answer>`, in this order, with something
        between them and nothing but white space after them; else 0.
    """
    return [float(_ends_with_its_only_answer(*written)) for written in _written(completions, turns)]


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


def _reward(score, completions, answer, turns, prompts) -> list[float | None]:
    """Score each completion's answer by `score(prediction, answers)`."""
    rewards = []
    for i, ((texts, _), answers) in enumerate(zip(_written(completions, turns), answer, strict=True)):
        where = f"'answer' of completion {i}" + (f", to {prompts[i]!r}," if prompts else "")
        aliases = [alias for alias in _as_list(answers, where) if alias.strip()]
        prediction = extract_answer(texts[-1]) if texts else None
        rewards.append(score(prediction or "", aliases) if aliases else None)
    return rewards


def _written(
    completions: list[str] | list[list[dict]], turns: list[list[Any]] | None
) -> Iterator[tuple[list[str], bool]]:
    """Of each completion the texts of its turns, and whether it ends with one of them rather than with an observation."""
    if turns is not None:
        for own in turns:
            calls = [[(call.name, call.arguments) for call in turn.calls] for turn in own]
            texts = [_with_answers(turn.text, called) for turn, called in zip(own, calls, strict=True)]
            yield texts, bool(own) and (not own[-1].observed or any(result.ends_rollout for result in own[-1].results))
        return
    for completion in completions:
        messages = _messages(completion) if isinstance(completion, str) else completion
        texts = [_content(message) for message in messages if message.get("role") == "assistant"]
        yield texts, bool(messages) and messages[-1].get("role") == "assistant"


def _messages(text: str) -> list[dict]:
    """A text as the turns and observations that it is made of."""
    pieces = enumerate(_RESULT.split(text))
    return [{"role": "tool" if i % 2 else "assistant", "content": piece} for i, piece in pieces if piece.strip()]


def _ends_with_its_only_answer(texts: list[str], ends_with_turn: bool) -> bool:
    if not ends_with_turn:
        return False
    written = "".join(texts)
    only_one = written.count("<answer>") == 1 and written.count("</answer>") == 1
    return only_one and texts[-1].rstrip().endswith("</answer>") and bool(extract_answer(texts[-1]))


def _content(message: dict) -> str:
    """Read a message's text, whether it is a text, absent, or a list of parts; and the answer that it calls `finish` with."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
    calls = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return _with_answers(text, [(call.get("name"), call.get("arguments")) for call in calls])


def _with_answers(text: str, calls: list[tuple[str | None, Any]]) -> str:
    """The text of a turn, and the answer that it calls `finish` with as if it were written."""
    finished = [arguments for name, arguments in calls if name == "finish" and isinstance(arguments, dict)]
    answers = [str(arguments["answer"]) for arguments in finished if "answer" in arguments]
    unwritten = [answer for answer in answers if answer.strip() != extract_answer(text)]  # its tag may be <answer>
    return "".join([text, *(f"<answer>{answer}</answer>" for answer in unwritten)])
