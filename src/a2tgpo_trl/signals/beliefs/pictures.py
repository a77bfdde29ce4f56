"""Pictures in contexts: where they stand, and what a model is given of them.

In a context a picture is placeholder tokens, the same ones whatever it shows. Contexts are told apart and packed by their
token ids, so the ids from the first placeholder of a prompt or observation to its last are *marked*: above each id stands
the number of what is pictured there, equal where ids and pictures are. A model is given the ids without their marks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ...rollout import Rollout
from ...rollout.pictures import Picture, PictureReader, digest

_MARK = 2**32
"""Above all token ids."""


@dataclass
class ReadPicture:
    """
    A picture of a batch.

    Attributes:
        image (`PIL.Image.Image`): As the rollout has it.
        features (`dict[str, Tensor]`, *optional*): What the processor makes of it, once a model has been given it.
    """

    image: Picture
    features: dict[str, Tensor] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PictureSpan:
    """
    Tokens of a context in which pictures stand: those of one prompt or observation.

    Attributes:
        start (`int`): The first placeholder.
        stop (`int`): One past the last.
        number (`int`): What the tokens are marked with, from 1 to 2^61.
        pictures (`list[ReadPicture]`): In the order of their placeholders.
    """

    start: int
    stop: int
    number: int
    pictures: list[ReadPicture]


def marked(ids: Sequence[int], spans: Sequence[PictureSpan]) -> list[int]:
    """Token ids of a context, marked where pictures stand."""
    ids = list(ids)
    for span in spans:
        ids[span.start : span.stop] = [token + span.number * _MARK for token in ids[span.start : span.stop]]
    return ids


def unmarked(ids: Sequence[int]) -> list[int]:
    """Token ids as the model knows them."""
    return [token % _MARK for token in ids]


class ContextPictures:
    """
    Finds the pictures in contexts, and tells what a model is given for them.

    Args:
        processor (`ProcessorMixin`): Of a known family.
        model (`PreTrainedModel`): Without adapters around it.

    Attributes:
        rotates_in_space (`bool`): Whether the tokens of a picture have positions of several dimensions.
    """

    def __init__(self, processor: ProcessorMixin, model: PreTrainedModel):
        self.reader = PictureReader(processor)
        self._rope_index = getattr(model.base_model, "get_rope_index", None)
        self.rotates_in_space = self._rope_index is not None

    def spans(self, rollouts: Sequence[Rollout]) -> list[list[PictureSpan]]:
        """Where pictures stand in the contexts of rollouts; equal pictures are one."""
        known: dict[int, ReadPicture] = {}
        return [self._spans_of(rollout, known) for rollout in rollouts]

    def _spans_of(self, rollout: Rollout, known: dict[int, ReadPicture]) -> list[PictureSpan]:
        spans, start = [], 0
        for ids, images in _segments(rollout):
            if images:
                spans.append(self._span(ids, images, start, known))
            start += len(ids)
        return spans

    def _span(self, ids: list[int], images: list, start: int, known: dict[int, ReadPicture]) -> PictureSpan:
        places = [place for place, token in enumerate(ids) if token == self.reader.image_token_id]
        if not places:
            raise ValueError(
                f"A prompt or observation with {len(images)} pictures has none of their placeholders, of the token "
                f"{self.reader.image_token_id}, among its tokens: the chat template must write one for each picture."
            )
        first, stop = places[0], places[-1] + 1
        numbers = [int(digest([image]), 16) for image in images]
        number = hash((*ids[first:stop], *numbers)) % 2**61 + 1  # of integers, and so the same on every process
        pictures = [known.setdefault(key, ReadPicture(image)) for key, image in zip(numbers, images, strict=True)]
        return PictureSpan(start + first, start + stop, number, pictures)

    def inputs(self, ids: Tensor, pictures: Sequence[ReadPicture]) -> dict[str, Tensor]:
        """
        What a model is given beside token ids.

        Args:
            ids (`Tensor`, shape `(B, T)`): Token ids, without marks.
            pictures (`Sequence[ReadPicture]`): Whose placeholders they hold, row by row.

        Returns:
            `dict[str, Tensor]`: such as `pixel_values`, `image_grid_thw` and `mm_token_type_ids`.
        """
        types = self.reader.inputs(ids.tolist(), [])
        inputs = {name: torch.tensor(values, device=ids.device) for name, values in types.items()}
        features = list(map(self._features, pictures))
        for name in features[0] if features else ():
            inputs[name] = torch.cat([one[name] for one in features]).to(ids.device)
        return inputs

    def positions(self, ids: Sequence[int], pictures: Sequence[ReadPicture]) -> Tensor:
        """
        Positions of the tokens of one sequence, where those of pictures have several dimensions.

        Args:
            ids (`Sequence[int]`, length `T`): A context and more, perhaps marked.
            pictures (`Sequence[ReadPicture]`): Whose placeholders they hold.

        Returns:
            `Tensor`, shape `(dimensions, 1, T)`, long.
        """
        tokens = torch.tensor([unmarked(ids)])
        inputs = self.inputs(tokens, pictures)
        return self._rope_index(tokens, **{name: inputs[name] for name in inputs if name != "pixel_values"})[0]

    def _features(self, picture: ReadPicture) -> dict[str, Tensor]:
        if picture.features is None:
            features = self.reader.processor.image_processor(images=[picture.image], return_tensors="pt")
            picture.features = self.reader.for_model(features)
        return picture.features


def _segments(rollout: Rollout) -> list[tuple[list[int], list]]:
    """The tokens of a rollout piece by piece, and the pictures that stand in each."""
    turns = [piece for turn in rollout.turns for piece in ((turn.ids, []), (turn.observation_ids, turn.images))]
    return [(rollout.prompt_ids, rollout.images), (rollout.leading_ids, []), *turns]
