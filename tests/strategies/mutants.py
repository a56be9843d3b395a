"""Strategies for the tests of torch training, in a module without torch: worker processes import what is registered."""

from typing import Any

from polypfed.strategies import FedAvg, Registry, Scaffold


class LastRate:
    """T05: the number of steps times the last step size, where each is 0.6 of the one before and the first 0.1."""

    linear = True

    def __init__(self) -> None:
        self._rule = Scaffold().local_rule()

    def begin(self, x: Any, shared: Any, mine: Any) -> None:
        self._rule.begin(x, shared, mine)

    def direction(self, gradient: Any, y: Any) -> Any:
        return self._rule.direction(gradient, y)

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        return self._rule.finish(x, y, steps, 0.1 * 0.6 ** (steps - 1))


@Registry.add
class ScaffoldByLastRate(Scaffold):
    def local_rule(self) -> Any:
        return LastRate()


class KeepsY:
    def begin(self, x: Any, shared: Any, mine: Any) -> None: ...

    def direction(self, gradient: Any, y: Any) -> Any:
        return gradient

    def finish(self, x: Any, y: Any, steps: int, lr: float) -> Any:
        return {}, {"y": y}


@Registry.add
class KeepsItsModel(FedAvg):
    def local_rule(self) -> Any:
        return KeepsY()
