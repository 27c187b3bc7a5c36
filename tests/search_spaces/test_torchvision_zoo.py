"""Networks of torchvision that begin as somebody has trained them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest
import torch
from torchvision import models

from flatsearch import FlatnessObjective, ModelCard, SpaceError, load_model, load_space, save_model
from flatsearch.data.splits import IMAGENET
from flatsearch.record import TrialRecord
from flatsearch.spaces.registry import space_identity
from search_spaces.torchvision_zoo import TorchvisionZoo

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.data.splits import ImageData

NAME = "shufflenet_v2_x0_5"  # the smallest


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(models.get_model(NAME, num_classes=7).state_dict(), file)
    return file


def reference(weights: Path | str) -> str:
    return f"torchvision_zoo,networks={NAME},weights={weights}"


def test_weights_of_a_file(weights: Path) -> None:
    """All are the file's but the head; gray images have the kernels summed over the colours."""
    space = load_space(reference(weights))
    architecture = space.suggest(optuna.trial.FixedTrial({"network": NAME}))
    stored = torch.load(weights, weights_only=True)
    for channels in (3, 1):
        model = space.build(architecture, in_channels=channels, num_classes=3, image_size=32)
        found = model.state_dict()
        assert found["fc.weight"].shape == (3, stored["fc.weight"].shape[1])
        for name in stored.keys() - {"fc.weight", "fc.bias"}:
            wanted = stored[name]
            if name == "conv1.0.weight" and channels == 1:
                wanted = wanted.sum(1, keepdim=True)
            assert torch.equal(found[name], wanted)
    # The mobile networks' widths have no published weights.
    assert TorchvisionZoo(weights="DEFAULT").suggest(
        optuna.trial.FixedTrial({"network": "mobilenet_v2"})
    ).values == {"network": "mobilenet_v2"}


def test_they_are_searched_and_loaded_like_any_others(
    weights: Path, few_digits: ImageData, tmp_path: Path
) -> None:
    space = TorchvisionZoo(NAME, str(weights))
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    objective = FlatnessObjective(space, few_digits, epochs=1, artifact_store=store)
    assert objective.space_reference == reference(weights)
    assert objective.settings.normalisation == "imagenet"
    mean, std = (255 * torch.tensor(v).mean() for v in IMAGENET)
    for split in (objective.data.train, objective.data.probe):
        assert torch.allclose(split.mean.flatten(), mean)
        assert torch.allclose(split.std.flatten(), std)
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1)
    assert study.trials[0].user_attrs["flatness"] > 0
    # What the search saves is normalised as it was trained.
    card = load_model(tmp_path / (TrialRecord(study.trials[0]).artifact or ""))[1]
    assert card.mean == pytest.approx((float(mean),))
    assert card.std == pytest.approx((float(std),))
    # What it began with is not needed to use it.
    architecture = space.suggest(optuna.trial.FixedTrial({"network": NAME}))
    model = space.build(architecture, in_channels=1, num_classes=10, image_size=8)
    gone = reference(tmp_path / "gone.pth")
    save_model(model, ModelCard.of(objective.data, gone, architecture), tmp_path / "m.pt")
    assert torch.equal(
        load_model(tmp_path / "m.pt")[0].state_dict()["1.conv1.0.weight"],
        model.state_dict()["1.conv1.0.weight"],
    )


def test_what_is_stored_of_a_reference(weights: Path) -> None:
    name, content = space_identity(reference(weights))
    assert name == reference("w.pth")
    assert content is not None
    assert space_identity("torchvision_zoo,weights=DEFAULT") == (
        "torchvision_zoo,weights=DEFAULT",
        None,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (f"networks={NAME},weights=NONE", "unknown weights of shufflenet_v2_x0_5 'NONE'"),
        ("networks=resnet19,weights=DEFAULT", "unknown network 'resnet19'; known: densenet121, "),
        ("weight=DEFAULT", "unexpected keyword argument 'weight'"),
    ],
)
def test_refused(given: str, message: str, few_digits: ImageData) -> None:
    with pytest.raises(SpaceError, match=message):
        FlatnessObjective(f"torchvision_zoo,{given}", few_digits, epochs=1).check()


def test_a_file_is_of_one_network(weights: Path) -> None:
    with pytest.raises(SpaceError, match="is a file of one network: give `networks`"):
        load_space(f"torchvision_zoo,weights={weights}")
