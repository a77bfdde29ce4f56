"""Ctrl-C that loses nothing."""

import signal

import torch
from accelerate import Accelerator
from transformers import TrainerCallback


class StopOnInterrupt(TrainerCallback):
    """
    Ends training after the step in which Ctrl-C was pressed, with a checkpoint; a second Ctrl-C ends it at once.

    Args:
        accelerator (`Accelerator`): Of the trainer: the processes stop together, after the same step.

    Attributes:
        is_asked (`bool`): Whether training was stopped in this way.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.is_asked = False
        self._before = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = signal.signal(signal.SIGINT, self._ask)

    def on_step_end(self, args, state, control, **kwargs):
        asked = torch.tensor([self.is_asked], device=self.accelerator.device)
        self.is_asked = bool(self.accelerator.gather(asked).any())
        if self.is_asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number, frame):
        self.is_asked = True
        signal.signal(signal.SIGINT, self._before)
        self.accelerator.print(
            "\nStopping after this step, with a checkpoint. Ctrl-C again stops at once.", flush=True
        )
