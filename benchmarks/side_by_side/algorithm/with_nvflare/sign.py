"""The server's step of the new algorithm in NVFlare."""

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator


class Sign(ModelAggregator):
    def __init__(self, eta, beta):
        super().__init__()
        self.eta, self.beta = eta, beta
        self.received, self.m = [], {}

    def accept_model(self, model):
        self.received.append(model)

    def aggregate_model(self):
        weights = [model.meta["NUM_STEPS_CURRENT_ROUND"] for model in self.received]
        for name in self.received[0].params:
            mean = np.average([model.params[name] for model in self.received], axis=0, weights=weights)
            self.m[name] = self.beta * self.m.get(name, 0) + mean
        step = {name: (self.eta * np.sign(m)).astype(np.float32) for name, m in self.m.items()}
        return FLModel(params=step, params_type=ParamsType.DIFF)

    def reset_stats(self):
        self.received = []
