"""Flower's simulation engine. Configurations: default, and best: a cluster of one core and one actor, no extras."""

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from peers.work import Job, asked, leave, mark, over, resident, train

BEST = {
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    "init_args": {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False},
}


class Marked(FedAvg):
    """FedAvg that notes its rounds, and tells the nodes it drew whose data they hold."""

    def __init__(self, job: Job, **settings: Any) -> None:
        super().__init__(**settings)
        self.job = job

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        if server_round == 1:
            mark("begin", tree=True)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, client in zip(messages, self.job.cohort(server_round), strict=True):
            told = ConfigRecord({"case": self.job.model, "client": client, "server-round": server_round})
            message.content = RecordDict({"arrays": arrays, "config": told})
        return messages

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        result = super().aggregate_train(server_round, replies)
        over(server_round, self.job.rounds)
        return result


def client_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        config = message.content["config"]
        module = resident(config["case"])
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        examples = train(config["case"], config["server-round"], config["client"])
        metrics = MetricRecord({"num-examples": examples})
        content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def server_app(job: Job) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        share = job.per_round / job.clients
        strategy = Marked(job, fraction_train=share, fraction_evaluate=0.0, min_available_nodes=job.clients)
        start = ArrayRecord(resident(job.model).state_dict())
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=job.rounds)
        leave(result.arrays.to_torch_state_dict())

    return app


if __name__ == "__main__":
    job = asked()
    mark("ready")
    run_simulation(
        server_app(job), client_app(), job.clients, backend_config=BEST if job.configuration == "best" else None
    )
