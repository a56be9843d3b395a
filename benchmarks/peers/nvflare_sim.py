"""NVFlare's simulator, a thread per client. Configurations: default (sites poll every 2 s), best (every 0.02 s)."""

import os
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import MetaKey
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob

from peers.work import FOLDER, asked, leave, mark, over, resident, train


class Training(Executor):
    """A site: the weights received are trained by the common function and sent back whole."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        received = FLModelUtils.from_shareable(shareable)
        number, client = received.current_round + 1, int(fl_ctx.get_identity_name().removeprefix("site-")) - 1
        module = resident(self.case)
        module.load_state_dict({k: torch.as_tensor(v) for k, v in received.params.items()})
        examples = train(self.case, number, client)
        params = {k: v.numpy().copy() for k, v in module.state_dict().items()}
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: examples}
        return FLModelUtils.to_shareable(FLModel(params_type=ParamsType.FULL, params=params, meta=meta))


class Marked(FedAvg):
    """FedAvg that notes its rounds."""

    def __init__(self, case: str, num_clients: int, num_rounds: int) -> None:  # what the job file keeps, by name
        super().__init__(persistor_id="", num_clients=num_clients, num_rounds=num_rounds)
        self.case = case

    def load_model(self) -> FLModel:
        mark("begin", tree=True)
        return FLModel(params={k: v.numpy().copy() for k, v in resident(self.case).state_dict().items()})

    def update_model(self, model: FLModel, *given: Any, **named: Any) -> FLModel:
        result = super().update_model(model, *given, **named)
        over(self.current_round + 1, self.num_rounds)
        leave({k: torch.as_tensor(v) for k, v in result.params.items()})
        return result

    def save_model(self, model: FLModel) -> None:
        """Nobody else writes one in this comparison."""


if __name__ == "__main__":
    job = asked()
    fed = FedJob(name="rounds")
    fed.to_server(Marked(job.model, num_clients=job.clients, num_rounds=job.rounds))
    if job.configuration == "best":
        fed.to_server({"server": {"task_request_interval": 0.02}})
    fed.to_clients(Training(job.model), tasks=["train"])
    mark("ready")
    workspace = os.path.join(os.environ[FOLDER], "workspace")
    fed.simulator_run(workspace, n_clients=job.clients, threads=job.clients, log_config="concise")
    assert np.load(os.path.join(os.environ[FOLDER], "final.npy")).size
