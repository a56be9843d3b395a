"""The new algorithm in Flower."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from problem import LR, ROUNDS, SITES, STEPS, Net, data, loss, score


class SignProx(FedAvg):
    def __init__(self, mu=0.1, eta=0.1, beta=0.9, **settings):
        super().__init__(**settings)
        self.mu, self.eta, self.beta = mu, eta, beta
        self.m = {}

    def configure_train(self, server_round, arrays, config, grid):
        self.x = arrays.to_torch_state_dict()
        config["mu"] = self.mu
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return arrays, metrics
        mean = arrays.to_torch_state_dict()
        self.m = {name: self.beta * self.m.get(name, 0) + mean[name] - x for name, x in self.x.items()}
        return ArrayRecord({name: x + self.eta * self.m[name].sign() for name, x in self.x.items()}), metrics


client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    start, mu = [p.detach().clone() for p in net.parameters()], message.content["config"]["mu"]
    x, y = data(int(context.node_config["partition-id"]))
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        for p, begun in zip(net.parameters(), start, strict=True):
            p.grad += mu * (p.detach() - begun)
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(x)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = SignProx(fraction_evaluate=0.0)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(Net().state_dict()), num_rounds=ROUNDS)
    print("Final", score(result.arrays.to_torch_state_dict()["weight"]))


run_simulation(server_app=server_app, client_app=client_app, num_supernodes=SITES)
