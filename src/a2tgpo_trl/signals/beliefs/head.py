"""The LM head, at chosen places only."""

from collections.abc import Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def predicting_at(model: PreTrainedModel, rows: Sequence[int], columns: Sequence[int]):
    """
    Let the LM head see these places of a batch only, in this order, as a batch of one row.

    A token that several sequences go on from is to predict something else in each; and where TRL's fused head scores every
    position, as on the CPU, most of the work is left out.

    Args:
        model (`PreTrainedModel`): Without adapters around it.
        rows (`Sequence[int]`, length `M`), columns (`Sequence[int]`, length `M`): The places.
    """

    def select(backbone, args, output):
        output.last_hidden_state = output.last_hidden_state[rows, columns].unsqueeze(0)  # (1, M, H)
        return output

    handle = model.base_model.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()
