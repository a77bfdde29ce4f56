"""A process reward model as a turn reward function."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ..rollout.rollout import text_of

logger = logging.get_logger(__name__)

Text = tuple[list[int], list[int]]
"""Token ids, and the numbers of them after which turns end."""


class ProcessRewardModel:
    """
    Rewards each turn by a model that reads the rollout up to its end: the prompt, all that the policy wrote, its calls and
    thinking included, and the observations.

    A model for sequence classification reads one text for each turn, that of the rollout up to the turn's end. One for token
    classification reads the whole rollout once, and its output at the last token of a turn counts. With one label the logit is
    the reward, with more the probability of the last label, which TRL's `PRMTrainer` gives to good steps.

    A rollout that is longer than what the model or its tokenizer can read is cut on the left: of what comes before the end of
    a turn, the model reads the last tokens, and before them the token that begins a text, where the tokenizer has one.

    Args:
        model (`str` or `PreTrainedModel`): A name or a folder, or the model itself. One without a padding token gets the
            tokenizer's. Code that comes with a model is not run: load such a one yourself, with its tokenizer, and give both.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Default: the model's own.
        batch_size (`int`): Texts in a forward.

    Raises:
        ValueError: If the model has another task or needs code of its own, or neither it nor its tokenizer has a padding token.
    """

    def __init__(
        self, model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, batch_size: int = 8
    ):
        self.model = (_load(model) if isinstance(model, str) else model).eval()
        self.reads_once = _classifies_tokens(type(self.model).__name__)
        path = self.model.config._name_or_path
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self.pad_token_id = _pad_token_id(self.model, self.tokenizer)
        # RoBERTa counts positions from 2 on: its tokenizer knows how many tokens that leaves
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(positions or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        self.batch_size = batch_size
        self.__name__ = (path or type(self.model).__name__).rstrip("/").split("/")[-1]

    def to(self, device: torch.device) -> None:
        """Move the model, unless it is quantised or spread by a `device_map`: such a model stays where it was loaded."""
        if not hasattr(self.model, "hf_device_map") and not hasattr(self.model, "hf_quantizer"):
            self.model.to(device)

    @torch.inference_mode()
    def __call__(
        self, turns: list[list[Any]], prompts: list[Any], decode: Callable[[list[int]], str], **columns: Any
    ) -> list[list[float]]:
        """
        The reward of each turn.

        Args:
            turns (`list[list[Turn]]`): The turns of each rollout.
            prompts (`list`): Of each rollout, a text or messages.
            decode (`Callable`): What the policy wrote, from a turn's token ids. The trainer gives it; whoever calls the model
                in a function of their own passes the `decode` of the policy's tokenizer.
            **columns: The dataset's columns, which are not used.
        """
        texts = [
            text
            for rollout, prompt in zip(turns, prompts, strict=True)
            for text in self._texts(*self._read(rollout, prompt, decode))
        ]
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        rewards = iter([reward for batch in batches for reward in self._score(batch)])
        return [[next(rewards) for _ in rollout] for rollout in turns]

    def _read(self, rollout: list[Any], prompt: Any, decode: Callable[[list[int]], str]) -> Text:
        """A whole rollout."""
        ids, ends = self._prompt_ids(prompt), []
        for turn in rollout:
            ids = ids + self._ids(decode(turn.ids))
            ends.append(len(ids))
            ids = ids + self._ids("\n" + turn.observation + "\n" if turn.observation is not None else "")
        return ids, ends

    def _texts(self, ids: list[int], ends: list[int]) -> list[Text]:
        """What the model is to read of a rollout: one text for each turn, or as few as have the end of each turn in them."""
        texts: list[Text] = []
        begin = int(ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id))
        while ends:
            start = max(ends[-1] - self.max_length, 0)
            if start:
                logger.warning_once(
                    f"The process reward model {self.__name__} reads {self.max_length} tokens, and rollouts are longer: of "
                    "what comes before the end of a turn it reads the last ones."
                )
            last = len(ends) - 1
            first = bisect_right(ends, start + begin, hi=last) if self.reads_once else last
            texts.insert(0, (ids[:begin] + ids[start + begin : ends[-1]], [end - start for end in ends[first:]]))
            ends = ends[:first]
        return texts

    def _prompt_ids(self, prompt: Any) -> list[int]:
        if not isinstance(prompt, str):  # it reads no pictures
            prompt = [{**m, "content": text_of(m)} if isinstance(m.get("content"), list) else m for m in prompt]
        if (
            not isinstance(prompt, str) and self.tokenizer.chat_template is not None
        ):  # which writes special tokens itself
            return self._ids(self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
        text = prompt if isinstance(prompt, str) else "".join(f"{message['content']}\n" for message in prompt)
        return self._ids(text, add_special_tokens=True)

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] if text else []

    def _score(self, texts: list[Text]) -> list[float]:
        """The rewards of all turns that end in a batch of texts."""
        device, width = self.model.device, max(len(ids) for ids, _ in texts)
        padded = torch.tensor([ids + [self.pad_token_id] * (width - len(ids)) for ids, _ in texts], device=device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in texts], device=device)
        logits = self.model(input_ids=padded, attention_mask=mask).logits.float()  # (b, labels) or (b, T, labels)
        rewards = logits[..., 0] if logits.size(-1) == 1 else logits.softmax(dim=-1)[..., -1]
        if self.reads_once:
            rows, places = zip(*[(i, end - 1) for i, (_, ends) in enumerate(texts) for end in ends], strict=True)
            rewards = rewards[list(rows), list(places)]
        return rewards.tolist()


def _load(name: str) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)  # or transformers asks at the keyboard
    by_token = _classifies_tokens((config.architectures or ["a model without architectures"])[0])
    loader = AutoModelForTokenClassification if by_token else AutoModelForSequenceClassification
    return loader.from_pretrained(name, trust_remote_code=False)


def _classifies_tokens(class_name: str) -> bool:
    """Whether a model of this class has an output at each token, not one for its text."""
    if not class_name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        raise ValueError(
            f"A process reward model is for sequence or token classification, and {class_name} is neither: load it with "
            "AutoModelForSequenceClassification or AutoModelForTokenClassification."
        )
    return class_name.endswith("ForTokenClassification")


def _pad_token_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The model's own, by which it finds the end of a text in a batch; one without gets the tokenizer's."""
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if config.pad_token_id is None:
        raise ValueError(
            "A process reward model reads texts in batches, and neither the model nor its tokenizer has a padding token: set "
            "the tokenizer's pad_token."
        )
    return config.pad_token_id
