"""What is measured of a candidate and when: as much as its share of the training time allows.

Costs are counted in forward passes of one image, which no clock disturbs: they are the same for
every candidate of a study, so all are measured alike, and a seed gives the same numbers again. With
N training and V validation images, E epochs and K classes

    training                   E (3 N + V)
    one convolution, n images  c + 1.3 n                beside its forward pass little is computed
    all convolutions           c + (1.3 + 3 (K - 1)) n  a backward pass and a product per class
    either the first time      p                        what is proved of the network

The fixed costs c and p are those of small networks (`resnet_small`, 8x8 and 32x32): the proof, and
the look at the network before every measurement, are work of Python's, whatever the images, and
most of the cost where there are few: 100 and 700 images' on a CPU, and many more on a GPU, which
passes images so much faster (`scripts/results/gpu.json`). A share of the training is spent. One
convolution is measured after every epoch, on at least 32 images, whatever that costs, and with half
of the share: pruners compare it. The rest goes to all convolutions: in the first epoch, where that
says most about the final accuracy, then in the last one, then in the second, and so on, on as many
images as fit, at least `LEAST`. Objectives are measured whatever they cost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData
    from flatsearch.settings import RunSettings

__all__ = ["LEAST", "Schedule"]

LEAST = 16
# One convolution is measured on at least this many images.
_LEAST_OF_ONE = 32
# All convolutions together: this many images times classes, fewer where the share is less.
_IMAGES_BY_CLASSES = 1280
# By the kind of device: of a measurement, and of the proof.
_FIXED = {"cpu": (100, 700), "cuda": (4_000, 16_000)}
_ONE = 1.3
_PER_CLASS = 3.0


@dataclass(frozen=True)
class Schedule:
    """What is measured, when, and at what cost.

    Attributes:
        images: Images of the probe that one convolution is measured on, after every epoch.
        images_of_all: Those that all convolutions are measured on.
        epochs_of_all: The epochs after which they are, counted from 1.
        share: What all of it is expected to cost, as a share of the training.
    """

    images: int
    images_of_all: int
    epochs_of_all: tuple[int, ...]
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored with a trial, as JSON types."""
        return {**asdict(self), "epochs_of_all": list(self.epochs_of_all)}

    @classmethod
    def of(cls, settings: RunSettings, data: ImageData) -> Schedule:
        """Return the schedule of a study.

        Args:
            settings: The settings of the run.
            data: The images.

        Returns:
            The schedule.

        Example:
            >>> from flatsearch import RunSettings, load_data
            >>> Schedule.of(RunSettings(epochs=8, flatness_share=0.12), load_data("digits"))
            Schedule(images=32, images_of_all=33, epochs_of_all=(1,), share=0.1194)
        """
        epochs = settings.epochs
        training = epochs * (3 * len(data.train) + len(data.validation))
        budget = settings.flatness_share * training
        whole = len(data.probe)
        share_of_one = 0.5 if settings.layers == "all" else 1.0
        call, proof = _FIXED.get(data.probe.targets.device.type, _FIXED["cpu"])
        fixed = proof + epochs * call
        images = (share_of_one * budget - fixed) / (_ONE * epochs)
        images = int(min(whole, max(_LEAST_OF_ONE, images)))
        cost = fixed + epochs * _ONE * images
        left = budget - cost - proof
        each = _ONE + _PER_CLASS * (data.num_classes - 1)
        most = min(whole, max(LEAST, _IMAGES_BY_CLASSES // data.num_classes))
        wanted = [epoch for epoch in range(1, epochs + 1) if settings.measures_all(epoch)]
        if settings.needs_all:
            chosen, many = wanted, most
        else:
            # The last epoch comes second.
            order = sorted(wanted, key=lambda epoch: (epoch > 1, epoch != epochs, epoch))
            fits = int(left // (call + each * min(LEAST, whole)))
            chosen = sorted(order[: max(0, fits)])
            many = int(min(most, (left / max(1, len(chosen)) - call) / each))
        if chosen:
            cost += proof + len(chosen) * (call + each * many)
        return cls(images, many if chosen else 0, tuple(chosen), round(cost / training, 4))
