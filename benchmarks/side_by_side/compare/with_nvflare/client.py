"""The site's side of three strategies in NVFlare."""

import argparse

import nvflare.client as flare
import torch
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper
from problem import LR, STEPS, Net, data, loss

parser = argparse.ArgumentParser()
parser.add_argument("--scaffold", action="store_true")
parser.add_argument("--difference", action="store_true")
options = parser.parse_args()

net, received = Net(), Net()
helper = PTScaffoldHelper()
helper.init(net)
flare.init()
x, y = data(int(flare.get_site_name().removeprefix("site-")) - 1)
while flare.is_running():
    model = flare.receive()
    received.load_state_dict({name: torch.as_tensor(value) for name, value in model.params.items()})
    net.load_state_dict(received.state_dict())
    if options.scaffold:
        helper.load_global_controls(model.meta[AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL])
        c_global, c_local = helper.get_params()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
        if options.scaffold:
            helper.model_update(net, LR, c_global, c_local)
    meta = {"NUM_STEPS_CURRENT_ROUND": STEPS}
    if options.scaffold:
        helper.terms_update(net, LR, c_global, c_local, received)
        meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF] = helper.get_delta_controls()
    params, kind = net.state_dict(), flare.ParamsType.FULL
    if options.difference:
        params = {name: value - received.state_dict()[name] for name, value in params.items()}
        kind = flare.ParamsType.DIFF
    flare.send(flare.FLModel(params=params, params_type=kind, meta=meta))
