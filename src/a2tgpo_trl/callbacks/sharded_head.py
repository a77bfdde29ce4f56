"""The gradient of a language-model head that FSDP2 keeps apart."""

from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback


class GatherHead(TrainerCallback):
    """
    With FSDP2, gathers the head before each forward.

    accelerate shards an untied head together with the last norm where it finds that, and else, as with models for pictures, alone. TRL
    multiplies by the head's weight without calling the head, so that nothing gathers it then, and what a process learns for its shard
    is the gradient of its own samples in place of the mean over all.
    """

    def __init__(self):
        self._hook = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        head = model.get_output_embeddings()
        if isinstance(head, FSDPModule):
            self._hook = model.register_forward_pre_hook(lambda *_: head.unshard())

    def on_train_end(self, args, state, control, **kwargs):
        if self._hook is not None:
            self._hook.remove()
