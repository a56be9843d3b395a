"""The site's side of three strategies in Flower."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from problem import LR, STEPS, Net, data, loss

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    start = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = data(int(context.node_config["partition-id"]))
    correction = {}
    if scaffold := "control" in message.content:
        control = message.content["control"].to_torch_state_dict()
        own = {name: torch.zeros_like(value) for name, value in control.items()}
        if "control" in context.state:
            own = context.state["control"].to_torch_state_dict()
        correction = {name: control[name] - own[name] for name in control}
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        for name, parameter in net.named_parameters():
            if scaffold:
                parameter.grad += correction[name]
        optimizer.step()
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": len(x)})})
    if scaffold:
        end = net.state_dict()
        new = {name: (start[name] - end[name]) / (STEPS * LR) - correction[name] for name in control}
        content["change"] = ArrayRecord({name: new[name] - own[name] for name in control})
        context.state["control"] = ArrayRecord(new)
    return Message(content=content, reply_to=message)
