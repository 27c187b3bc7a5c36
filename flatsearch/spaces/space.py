"""What a search space is: a sampler of architectures and a builder of models."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from optuna.exceptions import OptunaError

from flatsearch.errors import SpaceError, UsageError
from flatsearch.notebooks import card
from flatsearch.spaces.words import short_form

if TYPE_CHECKING:
    import optuna
    from torch import nn

__all__ = [
    "Architecture",
    "OnceTrial",
    "SearchSpace",
    "Value",
    "blaming",
    "build_model",
    "suggest_checked",
]

Scalar: TypeAlias = str | int | float | bool | None
Value: TypeAlias = Scalar | Sequence[Scalar]


def _is_scalar(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


class Architecture:
    """One network of a search space, as an immutable value.

    Two architectures are equal, and hash alike, when their canonical JSON is the same; a space
    should therefore leave out what does not change the network.

    Attributes:
        space: The search space's name.
        values: What `SearchSpace.build` needs: JSON scalars and lists of them, by name.

    Example:
        >>> a = Architecture("toy", {"widths": [8, 16], "kernel": 3})
        >>> a["widths"]
        (8, 16)
        >>> a.to_json()
        '{"space":"toy","values":{"kernel":3,"widths":[8,16]}}'
        >>> Architecture.from_json(a.to_json()) == a
        True
    """

    __slots__ = ("_json", "space", "values")
    space: str
    values: Mapping[str, Value]

    def __init__(self, space: str, values: Mapping[str, Value]) -> None:
        if not isinstance(space, str):
            raise SpaceError(f"an architecture's space must be a name but is {space!r}")
        frozen = {}
        for key, value in dict(values).items():
            items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
            if not isinstance(key, str) or not all(map(_is_scalar, items)):
                raise SpaceError(
                    f"space {space!r}: values must be JSON scalars or lists of them, by name,"
                    f" but {key!r} is {value!r}, of type {type(value).__name__}"
                )
            frozen[key] = items if isinstance(value, (list, tuple)) else value
        fields = {"space": space, "values": frozen}
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "_json", canonical)
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "values", MappingProxyType(dict(sorted(frozen.items()))))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Architecture cannot be changed (tried to set {name!r})")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Architecture cannot be changed (tried to delete {name!r})")

    def __getitem__(self, name: str) -> Any:
        """Return one value; lists come back as tuples."""
        return self.values[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[object, tuple[str, dict[str, Value]]]:
        return Architecture, (self.space, dict(self.values))

    def __repr__(self) -> str:
        listing = ", ".join(f"{key}={value!r}" for key, value in self.values.items())
        return f"Architecture({self.space}: {listing})"

    def _repr_html_(self) -> str:
        """Return what notebooks show: the values, and a drawing where the space is known."""
        return card(
            f"{self.space}: {short_form(self.values)}",
            rows=[(name, _shown(value)) for name, value in self.values.items()],
            drawing=_drawing(self),
        )

    @property
    def key(self) -> str:
        """The first twelve hex digits of the canonical JSON's SHA-256."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return the canonical JSON: keys sorted, no white space."""
        canonical: str = self._json  # type: ignore[attr-defined]
        return canonical

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Return the architecture that `to_json` wrote.

        Raises:
            SpaceError: If the text is not such JSON.
        """
        try:
            fields = json.loads(text)
            return cls(fields["space"], fields["values"])
        except (KeyError, TypeError, ValueError) as error:
            raise SpaceError(f"not an architecture: {text[:80]!r} ({error})") from None


def _shown(value: Value) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _drawing(architecture: Architecture) -> list[str]:
    """Return a drawing of an architecture's network for 3x32x32 images; none without its space."""
    from flatsearch.networks.drawing import draw
    from flatsearch.networks.layers import executed_layers
    from flatsearch.spaces.registry import load_space

    try:
        space = load_space(architecture.space)
        model = build_model(space, architecture, in_channels=3, num_classes=10, image_size=32)
        return draw(executed_layers(model, 3, 32), 3, 32)
    except UsageError:
        return []


@runtime_checkable
class SearchSpace(Protocol):
    """What a search space offers; any object with these two methods is one."""

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Ask the trial for parameters and return the architecture they describe.

        Args:
            trial: An Optuna trial; every `suggest_*` name is used once.

        Returns:
            The architecture, deterministic in the trial's parameters.
        """
        ...

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> nn.Module:
        """Return a freshly initialised network.

        Args:
            architecture: From `suggest`.
            in_channels: Channels of the images.
            num_classes: Length of the logits.
            image_size: Height and width of the images, for spaces whose strides depend on it;
                a space that does not need it may leave the argument out.

        Returns:
            A model from (N, in_channels, image_size, image_size) to logits (N, num_classes),
            ending in global average pooling and one linear layer.
        """
        ...


class OnceTrial:
    """A trial that refuses a name that has been used: Optuna would give the same value again."""

    def __init__(self, trial: optuna.trial.BaseTrial) -> None:
        self._trial = trial
        self._names: set[str] = set()

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._trial, attribute)
        if not attribute.startswith("suggest_"):
            return found

        def suggest(name: str, *args: Any, **kwargs: Any) -> Any:
            if name in self._names:
                raise SpaceError(f"the parameter name {name!r} is used twice")
            self._names.add(name)
            return found(name, *args, **kwargs)

        return suggest


@contextlib.contextmanager
def blaming(where: str) -> Iterator[None]:
    """Name where, class and method of a search space, in whatever goes wrong inside."""
    try:
        yield
    except OptunaError:  # a storage that is lost, or the space's own TrialPruned
        raise
    except SpaceError as error:
        raise SpaceError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise SpaceError(f"{where} failed: {type(error).__name__}: {error}") from error


def suggest_checked(space: SearchSpace, trial: optuna.trial.BaseTrial) -> Architecture:
    """Return the architecture of a trial, of a space that keeps to the rules.

    Raises:
        SpaceError: If the space fails, uses a parameter name twice or returns something else;
            names the class and the method.
    """
    where = f"{type(space).__name__}.suggest"
    once: Any = trial if isinstance(trial, OnceTrial) else OnceTrial(trial)
    with blaming(where):
        architecture = space.suggest(once)
    if not isinstance(architecture, Architecture):
        raise SpaceError(f"{where} must return an Architecture but returned {architecture!r}")
    return architecture


def build_model(
    space: SearchSpace,
    architecture: Architecture,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int,
    check: bool = True,
) -> nn.Module:
    """Return a network on the CPU, in training mode; it is a classifier of the asked shape.

    That is not checked again if the same network has been, see `check`.

    Raises:
        SpaceError: If building or one forward pass fails, or the logits have another shape;
            names the class and the method.
    """
    import torch  # which takes seconds, and commands that only read a study build nothing

    where = f"{type(space).__name__}.build"
    keywords = {"in_channels": in_channels, "num_classes": num_classes}
    accepted = inspect.signature(space.build).parameters
    if "image_size" in accepted or any(p.kind == p.VAR_KEYWORD for p in accepted.values()):
        keywords["image_size"] = image_size
    with blaming(where):
        model = space.build(architecture, **keywords)
    if not isinstance(model, torch.nn.Module):
        raise SpaceError(f"{where} must return a torch.nn.Module but returned {model!r}")
    if not check:
        return model.train()
    model.eval()
    try:
        x = torch.zeros(2, in_channels, image_size, image_size)
        with torch.no_grad():
            logits = model(x)
    except Exception as error:
        raise SpaceError(
            f"{where} returned a model that fails on images of shape"
            f" {(in_channels, image_size, image_size)}:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise SpaceError(
            f"{where} must return a model that gives logits but it gives a {type(logits).__name__}"
        )
    shape = tuple(logits.shape)
    if shape != (2, num_classes):
        raise SpaceError(
            f"{where} must return a model with logits of shape (N, {num_classes})"
            f" but two images gave {shape}"
        )
    return model.train()
