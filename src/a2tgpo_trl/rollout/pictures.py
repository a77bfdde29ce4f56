"""Pictures in messages, and what a processor makes of them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin
from transformers.image_utils import is_pil_image

from ..integrations.plain import PICTURE
from ..integrations.processors import placeholder_of

Picture = Any
"""A `PIL.Image.Image`; Pillow is needed only where there are some."""


def is_picture_block(block: Any) -> bool:
    """Whether a block of a message's content holds a picture."""
    return isinstance(block, Mapping) and block.get("type") == "image" and is_pil_image(block.get("image"))


def pictures_in(messages: Iterable[Mapping[str, Any]]) -> list[Picture]:
    """The pictures in the contents of messages, in their order."""
    contents = (message.get("content") for message in messages)
    blocks = (block for content in contents if isinstance(content, list) for block in content)
    return [block["image"] for block in blocks if is_picture_block(block)]


def picture_block(picture: Picture) -> dict[str, Any]:
    """A block that holds a copy of a picture: whoever made it may go on drawing on it."""
    return {"type": "image", "image": picture.copy()}


def digest(pictures: Iterable[Picture]) -> str:
    """A name of pictures: other pixels have another one."""
    hashed = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        hashed.update(f"{picture.mode} {picture.size} {picture.getpalette()}".encode() + picture.tobytes())
    return hashed.hexdigest()


class PictureReader:
    """
    What a model reads of pictures, made by its processor as TRL makes it.

    Args:
        processor (`ProcessorMixin`): Of a known family.
    """

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor
        self._known: dict[str, dict[str, Tensor]] = {}
        names = processor.model_input_names
        self._type_ids = next(name for name in ("mm_token_type_ids", "token_type_ids") if name in names)

    @property
    def image_token_id(self) -> int:
        """The token that stands for a part of a picture."""
        return self.processor.image_token_ids[0]

    @property
    def placeholders(self) -> list[int]:
        """Tokens that stand for parts of pictures, which only a processor may write."""
        ids = [*self.processor.image_token_ids, *self.processor.video_token_ids]
        return [token for token in ids if token is not None]

    def inputs(self, contexts: list[list[int]], pictures: Sequence[list[Picture]]) -> dict[str, Any]:
        """
        What `generate` takes beside token ids.

        Args:
            contexts (`list[list[int]]`, length `B`): Token ids.
            pictures (`Sequence[list]`, length `B`): The pictures whose placeholders stand in each.

        Returns:
            `dict`: type ids, and the pictures of all rows.
        """
        type_ids = {self._type_ids: self.processor.create_mm_token_type_ids(contexts)}
        read = [self._read(picture) for row in pictures for picture in row]
        return type_ids | {name: torch.cat([one[name] for one in read]) for name in (read[0] if read else ())}

    def _read(self, picture: Picture) -> dict[str, Tensor]:
        """What the processor makes of a picture, once until [`forget`]: each turn of a rollout reads its history again."""
        key = digest([picture])
        if key not in self._known:
            self._known[key] = self.for_model(self.processor.image_processor(images=[picture], return_tensors="pt"))
        return self._known[key]

    def forget(self, kept: Iterable[Picture] = ()) -> None:
        """Forget the pictures that were read, but for some."""
        names = {digest([picture]) for picture in kept}
        self._known = {name: read for name, read in self._known.items() if name in names}

    def for_model(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Without what an image processor tells the processor alone, such as Gemma 3's number of crops."""
        return {name: value for name, value in inputs.items() if name not in self.processor.unused_input_names}

    def placeholder_ids(self, picture: Picture) -> list[int]:
        """The tokens that stand for a picture in a text."""
        text = placeholder_of(self.processor)
        return self.processor(text=[text], images=[[picture]], add_special_tokens=False)["input_ids"][0]

    def count(self, ids: list[int]) -> int:
        """How many pictures have their placeholders in a text."""
        return sum(is_picture for is_picture, _ in self._runs(ids))

    def decode(self, texts: Sequence[list[int]]) -> list[str]:
        """Texts of lists of tokens, in which U+FFFC stands for all tokens of a picture, and for nothing else."""
        runs = [self._runs(ids) for ids in texts]
        words = [ids for text in runs for is_picture, ids in text if not is_picture]
        decoded = iter(self.processor.tokenizer.batch_decode(words))
        return [
            "".join(
                PICTURE if is_picture else next(decoded).replace(PICTURE, "\N{REPLACEMENT CHARACTER}")
                for is_picture, _ in text
            )
            for text in runs
        ]

    def _runs(self, ids: Sequence[int]) -> list[tuple[bool, list[int]]]:
        """The pieces of a text: whether one is a picture, and its tokens."""
        of_pictures = {*self.processor.image_token_ids}
        return [(is_picture, [*run]) for is_picture, run in groupby(ids, key=of_pictures.__contains__)]


def rows_with_pictures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Rows of a batch in the form in which TRL and processors tell what is a picture.

    Blocks lose the empty values that Arrow gives them. TRL looks for columns in the first row alone, so each row gets those that any
    has, or where there is no picture, an empty list of them.

    Args:
        rows (`Sequence[Mapping]`): Of a dataset.
    """
    rows = [{**row, "prompt": _without_empty_values(row["prompt"])} if "prompt" in row else dict(row) for row in rows]
    columns = {"image", "images"} & set().union(*rows)
    pictures = [picture for row in rows for picture in (row.get("image"), *(row.get("images") or []))]
    if columns and not any(picture is not None for picture in pictures):
        columns = {"images"}
    empty = {"image": None, "images": []}
    return [{**{column: empty[column] for column in columns}, **row} for row in rows]


def _without_empty_values(prompt: Any) -> Any:
    if not isinstance(prompt, list):
        return prompt
    return [
        {**message, "content": list(map(_without_nones, message["content"]))}
        if isinstance(message.get("content"), list)
        else message
        for message in prompt
    ]


def _without_nones(block: Any) -> Any:
    return {key: value for key, value in block.items() if value is not None} if isinstance(block, dict) else block


def without_empty_pictures(model: Callable[..., Any], **inputs: Any) -> Any:
    """
    Run a model without pictures where there are none: of a micro-batch without any beside others with some, TRL passes tensors of
    length 0, which no model takes.

    Args:
        model (`Callable`): Takes them as `pixel_values` and `image_grid_thw`.
        inputs: What it is given.
    """
    if "pixel_values" in inputs and not len(inputs["pixel_values"]):
        inputs = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_grid_thw")}
    return model(**inputs)


def check_pictures_are_read(rollouts: Sequence[Any], tensors: Mapping[str, Any]) -> None:
    """
    Refuse a batch whose pictures TRL left out, as it does in silence where they are not those whose placeholders stand in the tokens.

    Args:
        rollouts (`Sequence[Rollout]`): Of the batch.
        tensors (`Mapping[str, Tensor]`): What the loss reads.

    Raises:
        RuntimeError: If there are pictures in a rollout, and none in the tensors.
    """
    if "pixel_values" not in tensors and any(rollout.all_images for rollout in rollouts):
        raise RuntimeError(
            "The pictures of a batch do not have the number of tokens that stand for them, so the model cannot read them: leave the "
            "processor's options for pictures out of chat_template_kwargs, and set them on the processor."
        )
