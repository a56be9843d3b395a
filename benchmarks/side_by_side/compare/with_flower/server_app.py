"""The server's side of three strategies in Flower, and their simulation."""

from collections.abc import Iterable

import torch
from client_app import app as client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.simulation import run_simulation
from problem import ROUNDS, SITES, Net, score


class Scaffold(FedAvg):
    """Flower has no SCAFFOLD among its strategies."""

    control: dict[str, torch.Tensor] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if self.control is None:
            self.control = {name: torch.zeros_like(v) for name, v in arrays.to_torch_state_dict().items()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content["control"] = ArrayRecord(self.control)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        changes = [r.content.pop("change").to_torch_state_dict() for r in replies if r.has_content()]
        for name in self.control:
            self.control[name] += sum(change[name] for change in changes) / SITES
        return super().aggregate_train(server_round, replies)


for strategy in (FedAvg, FedAdam, Scaffold):
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context, strategy: type[FedAvg] = strategy) -> None:
        result = strategy(fraction_evaluate=0.0).start(
            grid=grid, initial_arrays=ArrayRecord(Net().state_dict()), num_rounds=ROUNDS
        )
        print(strategy.__name__, score(result.arrays.to_torch_state_dict()["weight"]))

    run_simulation(server_app=app, client_app=client_app, num_supernodes=SITES)
