"""What a training method is: settings, a class with some of the loop's events, and a place among the others.

A method is one file in `methods/`, found by its name and listed nowhere: its settings stand under `train.methods.NAME`.
Reading a configuration imports all of these files and must not import torch, so they import it where they use it.

Without any method the loop is a plain trainer: a row for each document, all logits at once, AdamW at a constant rate.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field, create_model

from tessera.config import Section
from tessera.train import methods as package

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.shard.read.batches import Batch
    from tessera.train.job import Job


class MethodSettings(Section):
    """How much of a method there is, and what else decides it."""

    strength: float = Field(1.0, ge=0, le=1)
    """How much of the method: 1 is all of it, 0 trains as if there were no such method."""


SettingsT = TypeVar("SettingsT", bound=MethodSettings)


class Method(Generic[SettingsT]):
    """Takes part in some events of the loop; here each does nothing.

    Events come in the order of the functions below, and within one the methods in that of their places. Every rank has
    the same methods and must come to the same numbers.
    """

    settings_type: ClassVar[type[MethodSettings]]
    place: ClassVar[int]
    """Lower ones come first; equal ones by name."""

    def __init__(self, settings: SettingsT, *, job: "Job") -> None:
        self.settings = settings
        self.job = job

    def init(self) -> None:
        """Once, before a checkpoint is restored: may change the model, the loss, or what updates which parameters."""

    def batch(self) -> None:
        """A global batch begins; or begins again, where memory did not suffice for its micro-batches."""

    def micro_batch(self, part: "Batch") -> "Batch":
        """Each micro-batch, before it is computed."""
        return part

    def forward(self) -> AbstractContextManager[None]:
        """Lies around the model and the loss of a micro-batch."""
        return nullcontext()

    def loss(self, nats: "Tensor", part: "Batch") -> "Tensor":
        """May add to a micro-batch's loss, a sum over its labels, what is to be learned besides."""
        return nats

    def backward(self, *, norm: float) -> None:
        """The gradients are those of the mean over the global batch, with this norm."""

    def schedule(self, step: int) -> float:
        """What the learning rates of a step, 0-based, are multiplied by."""
        return 1.0

    def optimizer(self, factor: float) -> None:
        """Updates the parameters that this method took over; `factor` is the product of all schedules."""

    def end_of_batch(self) -> dict[str, float]:
        """The step is done; gives numbers for its line of metrics."""
        return {}

    def evaluation(self) -> AbstractContextManager[None]:
        """Lies around the measurement on held-out text."""
        return nullcontext()

    def end(self) -> None:
        """After the last step, before its checkpoint."""

    def state(self) -> "dict[str, Tensor]":
        """The method's own tensors by name, in every checkpoint; resuming copies the kept values into them."""
        return {}


class Methods:
    """The methods of a run in their order, asked as one."""

    def __init__(self, methods: "dict[str, Method[Any]]") -> None:
        self._methods = methods

    def init(self) -> None:
        for method in self:
            method.init()

    def batch(self) -> None:
        for method in self:
            method.batch()

    def micro_batch(self, part: "Batch") -> "Batch":
        for method in self:
            part = method.micro_batch(part)
        return part

    def forward(self) -> AbstractContextManager[Any]:
        return _all(method.forward() for method in self)

    def loss(self, nats: "Tensor", part: "Batch") -> "Tensor":
        for method in self:
            nats = method.loss(nats, part)
        return nats

    def backward(self, *, norm: float) -> None:
        for method in self:
            method.backward(norm=norm)

    def schedule(self, step: int) -> float:
        factor = 1.0
        for method in self:
            factor *= method.schedule(step)
        return factor

    def optimizer(self, factor: float) -> None:
        for method in self:
            method.optimizer(factor)

    def end_of_batch(self) -> dict[str, float]:
        return {key: value for method in self for key, value in method.end_of_batch().items()}

    def evaluation(self) -> AbstractContextManager[Any]:
        return _all(method.evaluation() for method in self)

    def end(self) -> None:
        for method in self:
            method.end()

    def state(self) -> "dict[str, Tensor]":
        own = self._methods.items()
        return {f"{name}.{key}": value for name, method in own for key, value in method.state().items()}

    def __iter__(self) -> "Iterator[Method[Any]]":
        return iter(self._methods.values())


class MethodsSettings(Section):
    """All methods by name; see `train/methods`."""

    @property
    def active(self) -> dict[str, MethodSettings]:
        """Those of any strength, in their order."""
        given: dict[str, MethodSettings] = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: settings for name, settings in given.items() if settings.strength > 0}

    def identity(self) -> dict[str, Any]:
        """A method without strength decides nothing: runs stay what they were when another is added to Tessera."""
        return {name: settings.identity() for name, settings in self.active.items()}


def make(settings: MethodsSettings, *, job: "Job") -> Methods:
    """The methods of a run."""
    return Methods({name: classes()[name](given, job=job) for name, given in settings.active.items()})


@cache
def classes() -> dict[str, type[Method[Any]]]:
    """Every method that there is, by name, in order of place."""
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        values = vars(importlib.import_module(f"{package.__name__}.{module.name}")).values()
        found[module.name] = next(value for value in values if _is_method(value))
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))


def settings_type() -> type[MethodsSettings]:
    """A section with a field for every method."""
    fields: dict[str, Any] = {
        name: (method.settings_type, Field(method.settings_type(), description=method.settings_type.__doc__))
        for name, method in classes().items()
    }
    return create_model("MethodsSettings", __base__=MethodsSettings, __doc__=MethodsSettings.__doc__, **fields)


def _is_method(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and hasattr(value, "settings_type")


@contextmanager
def _all(contexts: "Iterator[AbstractContextManager[None]]") -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
