"""Writes turn records while a trainer trains."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerState
from transformers.utils import logging

from ..batch import GenerationBatch
from ..config import A2TGPOConfig
from ..records.rows import Decode, turn_rows
from ..records.store import FOLDER, RecordStore
from ..records.trackers import describe_metrics, log_table

logger = logging.get_logger(__name__)
MEGABYTE = 2**20


class TurnRecorder(TrainerCallback):
    """
    Writes the turns of each generation batch to `output_dir`, and now and then as a table to wandb and trackio.

    Args:
        args ([`A2TGPOConfig`]): `turn_records_max_mb`, `turn_records_picture_px` and `turn_table_steps`.
        accelerator ([`~accelerate.Accelerator`]): Of the trainer; its main process writes.
    """

    def __init__(self, args: A2TGPOConfig, accelerator: Accelerator):
        self.args = args
        self.accelerator = accelerator
        self.store = RecordStore(Path(args.output_dir) / FOLDER, int(args.turn_records_max_mb * MEGABYTE))
        self._next_table = self._next_batch = 0

    def state_dict(self) -> dict[str, int]:
        """The step of the next table, and the number of the next batch."""
        return {"next_table": self._next_table, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next_table, self._next_batch = state["next_table"], state["next_batch"]

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self._next_table, self._next_batch = state.global_step, 0
        describe_metrics(args.report_to)
        if state.global_step == 0:
            if moved := self.store.set_aside():
                logger.warning(f"Turn records of an earlier run were moved to {moved}.")
        elif dropped := self.store.drop_from(state.global_step):
            logger.warning(
                f"Turn records of {dropped} batches from step {state.global_step} on were deleted in {self.store.folder}: "
                "this run writes them again."
            )

    def record(self, batch: GenerationBatch, decode: Decode, state: TrainerState) -> None:
        """
        Write the turns of a generation batch; to be called by all processes.

        Args:
            batch ([`GenerationBatch`]): With the rewards and the credit of its rollouts.
            decode (`Callable`): Texts of lists of tokens.
            state ([`~transformers.TrainerState`]): Of the trainer.
        """
        rows = gather_object(
            turn_rows(
                batch.rollouts,
                batch.local.start,
                batch.num_generations,
                decode,
                self.args.turn_records_picture_px,
            )
        )
        if not rows or not self.accelerator.is_main_process:
            return
        number = max(self._next_batch, self.store.next_batch())  # the last file may have been dropped, or be elsewhere
        self._next_batch = number + 1
        rows = [{"step": state.global_step, "batch": number} | row for row in rows]
        self.store.append(rows)
        if self.args.turn_table_steps and state.global_step >= self._next_table:
            log_table(rows, state.global_step, self.args.report_to)
            self._next_table = state.global_step + self.args.turn_table_steps
