"""polypfed in this process. Configurations: default (float64 sums), best (float32), vmap; train: no engine at all."""

from functools import partial

from peers.work import BATCH, LR, asked, data, leave, mark, name, over, resident, train

job = asked()


def bare() -> None:
    """The training alone: nothing received, sent or averaged."""
    mark("begin", tree=True)
    for number in range(1, job.rounds + 1):
        for client in job.cohort(number):
            train(job.model, number, client)
        over(number, job.rounds)


def federated() -> None:
    import torch

    import polypfed as pf

    sgd, cross = partial(torch.optim.SGD, lr=LR), torch.nn.functional.cross_entropy
    module, own = resident(job.model), data(job.model)
    clients = [
        pf.clients.TorchClient(name(i), module, cross, own[i], optimizer=sgd, batch=BATCH) for i in range(job.clients)
    ]

    def listen(event: pf.federation.Event) -> None:
        if event.kind == "round" and event.round == 1:
            mark("begin", tree=True)
        if event.kind == "saved" and event.round:
            over(event.round, job.rounds)

    strategy = pf.strategies.FedAvg(reducer=pf.Mean(dtype="float64" if job.configuration == "default" else "float32"))
    fed = pf.Federation(clients=clients, strategy=strategy, per_round=job.per_round, evaluate="off")
    mark("ready")
    history = fed.run(job.rounds, pf.backends.Local(vectorised=job.configuration == "vmap"), listen=listen)
    assert not history.failures
    leave(history.model)


if __name__ == "__main__":
    if job.configuration == "train":
        mark("ready")
        bare()
    else:
        federated()
