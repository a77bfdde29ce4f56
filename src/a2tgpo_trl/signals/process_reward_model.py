"""A process reward model as a turn reward function."""

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


class ProcessRewardModel:
    """
    Rewards each turn by a model that reads the rollout up to its end.

    A model for sequence classification reads one text for each turn, that of the rollout up to the turn's end. One for token
    classification reads the whole rollout once, and its output at the last token of a turn counts. With one label the logit is
    the reward, with more the probability of the last label, which TRL's `PRMTrainer` gives to good steps.

    Args:
        model (`str` or `PreTrainedModel`): A name or a folder, or the model itself.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Default: the model's own.
        batch_size (`int`): Texts in a forward.

    Raises:
        ValueError: If the model has another task.
    """

    def __init__(
        self, model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, batch_size: int = 8
    ):
        self.model = (_load(model) if isinstance(model, str) else model).eval()
        name = type(self.model).__name__
        self.reads_once = _reads_once(name)
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(self.model.config._name_or_path)
        self.batch_size = batch_size
        self.__name__ = (self.model.config._name_or_path or name).rstrip("/").split("/")[-1]

    @torch.inference_mode()
    def __call__(self, turns: list[list[Any]], prompts: list[Any], **columns: Any) -> list[list[float]]:
        """The reward of each turn."""
        texts, places = [], []
        for rollout, prompt in zip(turns, prompts, strict=True):
            pieces, ends = self._pieces(rollout, prompt)
            if self.reads_once:
                texts.append(pieces)
                places.append(ends)
            else:
                texts += [pieces[:end] for end in ends]
                places += [[end] for end in ends]
        rewards = [reward for start in range(0, len(texts), self.batch_size) for reward in self._score(
            texts[start : start + self.batch_size], places[start : start + self.batch_size]
        )]  # fmt: skip
        flat = iter(rewards)
        return [[next(flat) for _ in rollout] for rollout in turns]

    def _pieces(self, rollout: list[Any], prompt: Any) -> tuple[list[int], list[int]]:
        """Token ids of a rollout, and after how many of them each turn ends."""
        ids, ends = self._ids(self._prompt_text(prompt), add_special_tokens=True), []
        for turn in rollout:
            ids = ids + self._ids(turn.text)
            ends.append(len(ids))
            ids = ids + self._ids("\n" + turn.observation + "\n" if turn.observation is not None else "")
        return ids, ends

    def _prompt_text(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        if self.tokenizer.chat_template is not None:
            return self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return "\n".join(str(message["content"]) for message in prompt) + "\n"

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] if text else []

    def _score(self, texts: list[list[int]], places: list[list[int]]) -> list[float]:
        device, width = self.model.device, max(map(len, texts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts], device=device)
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits.float()  # (b, labels) or (b, T, labels)
        rewards = logits[..., 0] if logits.size(-1) == 1 else logits.softmax(dim=-1)[..., -1]
        if not self.reads_once:
            return rewards.tolist()
        return [rewards[row, end - 1].item() for row, ends in enumerate(places) for end in ends]


def _load(name: str) -> PreTrainedModel:
    (architecture, *_) = AutoConfig.from_pretrained(name).architectures or ["one of no stated class"]
    auto = AutoModelForTokenClassification if _reads_once(architecture) else AutoModelForSequenceClassification
    return auto.from_pretrained(name)


def _reads_once(architecture: str) -> bool:
    """Whether a class of models is for token classification; another task would get a new head, of random weights."""
    if not architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        raise ValueError(
            f"A process reward model is for sequence or token classification, and {architecture} is neither: name or give a model "
            "that was trained as AutoModelForSequenceClassification or AutoModelForTokenClassification."
        )
    return architecture.endswith("ForTokenClassification")
