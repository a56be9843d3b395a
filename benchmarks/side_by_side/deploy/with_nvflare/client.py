"""The site's side in NVFlare."""

import nvflare.client as flare
import torch
from problem import LR, STEPS, Net, data, loss

net = Net()
flare.init()
x, y = data(int(flare.get_site_name().removeprefix("site-")) - 1)
while flare.is_running():
    model = flare.receive()
    net.load_state_dict({name: torch.as_tensor(value) for name, value in model.params.items()})
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
    flare.send(flare.FLModel(params=net.state_dict(), meta={"NUM_STEPS_CURRENT_ROUND": STEPS}))
