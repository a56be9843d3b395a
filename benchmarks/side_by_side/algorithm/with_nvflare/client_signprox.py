"""The site's side of the new algorithm in NVFlare."""

import argparse

import nvflare.client as flare
import torch
from problem import LR, STEPS, Net, data, loss

parser = argparse.ArgumentParser()
parser.add_argument("--mu", type=float)
mu = parser.parse_args().mu

net = Net()
flare.init()
x, y = data(int(flare.get_site_name().removeprefix("site-")) - 1)
while flare.is_running():
    model = flare.receive()
    net.load_state_dict({name: torch.as_tensor(value) for name, value in model.params.items()})
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        for name, p in net.named_parameters():
            p.grad += mu * (p.detach() - start[name])
        optimizer.step()
    difference = {name: value - start[name] for name, value in net.state_dict().items()}
    meta = {"NUM_STEPS_CURRENT_ROUND": STEPS}
    flare.send(flare.FLModel(params=difference, params_type=flare.ParamsType.DIFF, meta=meta))
