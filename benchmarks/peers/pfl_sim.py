"""pfl-research's simulation. Its default is its best configuration on one machine without a GPU."""

from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from peers.work import BATCH, LR, asked, data, leave, mark, over, resident, train

job = asked()


class Marked(FederatedAveraging):
    """Its hook for local training calls the common function; rounds are noted."""

    number = 1

    def get_next_central_contexts(self, *given: Any, **named: Any) -> Any:
        if self.number == 1:
            mark("begin", tree=True)
        return super().get_next_central_contexts(*given, **named)

    def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
        train(job.model, self.number, user_dataset.user_id)
        return model.get_model_difference(initial_model_state), Metrics()

    def process_aggregated_statistics(self, *given: Any, **named: Any) -> Any:
        result = super().process_aggregated_statistics(*given, **named)
        over(self.number, job.rounds)
        self.number += 1
        return result


def cohorts() -> Any:
    number = 0
    while True:
        number += 1
        yield from job.cohort(number)


if __name__ == "__main__":
    module = resident(job.model)
    module.loss = lambda x, y: torch.nn.functional.cross_entropy(module(x), y)
    module.metrics = lambda x, y: {"none": Weighted(0, 1)}  # it evaluates in its first round, come what may
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    draws, own = cohorts(), data(job.model)
    users = FederatedDataset(lambda user: Dataset(own[user], user_id=user), lambda: next(draws))
    settings = NNAlgorithmParams(
        central_num_iterations=job.rounds,
        evaluation_frequency=1 << 30,
        train_cohort_size=job.per_round,
        val_cohort_size=None,
    )
    local = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH)
    mark("ready")
    Marked().run(settings, SimulatedBackend(users, None), model, local, NNEvalHyperParams(local_batch_size=None))
    leave({k: v.detach() for k, v in module.named_parameters()})
