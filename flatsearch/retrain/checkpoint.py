"""The final training of one seed, kept on disk after every epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flatsearch.errors import DivergedError, FlatsearchError, UsageError
from flatsearch.training.memory import freed_memory_kept
from flatsearch.training.trainer import Trainer, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from flatsearch.data.splits import ImageData
    from flatsearch.settings import RunSettings

__all__ = ["LABEL_SMOOTHING"]

LABEL_SMOOTHING = 0.1
# The average reaches back over about this share of all steps.
_AVERAGED = 0.05
_FORMAT = "flatsearch-checkpoint"


class SeedTraining:
    """One seed's training, with its checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        settings: RunSettings,
        seed: int,
        checkpoint: Path,
        key: str,
        accumulate: int,
    ) -> None:
        self.model, self.settings = model, settings
        self.checkpoint, self.key = checkpoint, key
        self._device = data.train.targets.device
        self.train_loss = math.nan
        self.trainer = Trainer(
            model,
            data,
            settings,
            seed=seed,
            accumulate=accumulate,
            label_smoothing=LABEL_SMOOTHING,
            on_step=self._average,
        )
        horizon = max(1.0, _AVERAGED * settings.epochs * self.trainer.steps_per_epoch)
        average = get_ema_multi_avg_fn(math.exp(-1.0 / horizon))  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    def _average(self) -> None:
        self.averaged.update_parameters(self.model)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one of this training."""
        if not self.checkpoint.exists():
            return
        what = f"checkpoint {str(self.checkpoint)!r}"
        try:
            state: Any = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            known = state.get("format") == _FORMAT
        except Exception as error:  # a damaged file can fail in any way inside the unpickler
            raise UsageError(
                f"{what} cannot be read ({type(error).__name__}); `force` starts anew"
            ) from None
        if not known or state["key"] != self.key:
            raise UsageError(
                f"{what} is of another training (epochs, architecture, data or seed);"
                " `force` starts anew, another folder keeps it"
            )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.trainer.load_state_dict(state["trainer"])
        self.train_loss = state["train_loss"]
        torch.set_rng_state(state["random"])
        if len(state["random_cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(state["random_cuda"])

    def save(self) -> None:
        """Write the checkpoint whole and move it into place: a killed process leaves the last."""
        state = {
            "format": _FORMAT,
            "key": self.key,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "trainer": self.trainer.state_dict(),
            "train_loss": self.train_loss,
            # Dropout draws from the global generators.
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def run(self, on_epoch: Callable[[int, float], None] | None) -> nn.Module:
        """Train to the end and return the averaged model."""
        with freed_memory_kept(self._device):
            while self.trainer.epochs_done < self.settings.epochs:
                self.train_loss = self._epoch()
                done = self.trainer.epochs_done
                if not math.isfinite(self.train_loss):
                    raise DivergedError(f"training diverged in epoch {done}")
                self.save()
                if on_epoch is not None:
                    on_epoch(done, self.train_loss)
        averaged: nn.Module = self.averaged.module
        return averaged.eval()

    def _epoch(self) -> float:
        try:
            return self.trainer.epoch()[0]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            done = self.trainer.epochs_done
            raise FlatsearchError(
                f"memory is used up after epoch {done}, whose checkpoint is kept"
            ) from error
