"""The form of a prompt: text or messages, from a question or from a prompt that is ready."""

from dataclasses import dataclass

DEFAULT_TEMPLATE = "Question: {question}\n"


@dataclass(frozen=True)
class PromptForm:
    """How prompts are written.

    Attributes:
        template (`str`):
            The prompt; `{question}` stands for the question, and other braces for themselves.
        conversational (`bool`):
            Whether prompts are lists of messages instead of texts.

    Raises:
        `ValueError`: the template has no place for the question.
    """

    template: str
    conversational: bool

    def __post_init__(self):
        if "{question}" not in self.template:
            raise ValueError(
                f"prompt_template is {self.template!r}; it must hold {{question}} where the question goes."
            )

    def fill(self, question: str) -> str | list[dict]:
        """Write the prompt of a question."""
        return self._from_text(self.template.replace("{question}", question))

    def convert(self, ready: str | list[dict], where: str) -> str | list[dict]:
        """Bring a prompt that is ready into this form.

        Args:
            ready (`str` or `list[dict]`):
                Text, or messages with `"role"` and `"content"`, which is text or blocks of text and of images.
            where (`str`):
                What to call the prompt in an error.

        Returns:
            `str` or `list[dict]`: the same; text becomes one user message, and one user message its text, if need be.

        Raises:
            `ValueError`: it is neither text nor messages of text, or it is a conversation that no text can stand for.
        """
        if isinstance(ready, str) and ready.strip():
            return self._from_text(ready)
        if not isinstance(ready, list) or not ready or not all(map(_is_message, ready)):
            raise ValueError(f"{where} must be text, or messages with a role and a text as content; got {ready!r}.")
        messages = [{"role": message["role"], "content": _content(message["content"])} for message in ready]
        if self.conversational:
            return messages
        if [message["role"] for message in messages] != ["user"] or not isinstance(messages[0]["content"], str):
            raise ValueError(
                f"{where} is a conversation of {[message['role'] for message in messages]}, which is no text: load it "
                "with conversational=True, or give a prompt_template."
            )
        return messages[0]["content"]

    def _from_text(self, text: str) -> str | list[dict]:
        return [{"role": "user", "content": text}] if self.conversational else text


def _is_message(value: object) -> bool:
    """Whether a value is a role and a content, and nothing else but empty fields."""
    if _filled(value) != {"role", "content"} or not isinstance(value["role"], str):
        return False
    content = value["content"]
    return isinstance(content, str) or (isinstance(content, list) and all(map(_is_block, content)))


def _is_block(value: object) -> bool:
    """Whether a value is a text, or the place of an image."""
    if _filled(value) == {"type", "text"}:
        return value["type"] == "text" and isinstance(value["text"], str)
    return _filled(value) == {"type"} and value["type"] == "image"


def _filled(value: object) -> set[str]:
    return {key for key, field in value.items() if field is not None} if isinstance(value, dict) else set()


def _content(content: str | list[dict]) -> str | list[dict]:
    """A content as text, unless images have places in it."""
    if isinstance(content, str):
        return content
    if any(block["type"] == "image" for block in content):
        return [{key: block.get(key) for key in ("type", "text")} for block in content]
    return "".join(block["text"] for block in content)
