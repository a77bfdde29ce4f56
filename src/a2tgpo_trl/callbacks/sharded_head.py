"""The gradient of a language-model head that FSDP2 keeps apart."""

from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback


class GatherHead(TrainerCallback):
    """
    With FSDP2, gathers the head before each forward.

    accelerate shards the head together with the last norm where it finds that, and else, as with models for pictures, alone.
    TRL multiplies by its weight without calling it, so that nothing gathers it then, and each process gets the gradient
    of its own rows in place of the mean over all of them.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        head = model.get_output_embeddings()
        if isinstance(head, FSDPModule):
            model.register_forward_pre_hook(lambda *_: head.unshard())
