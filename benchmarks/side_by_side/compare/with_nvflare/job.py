"""The server's side of three strategies in NVFlare, and their simulation."""

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.app_opt.pt.recipes.fedopt import FedOptRecipe
from nvflare.app_opt.pt.recipes.scaffold import ScaffoldRecipe
from nvflare.recipe.sim_env import SimEnv
from problem import ROUNDS, SITES, Net, score, stored

adam = {"path": "torch.optim.Adam", "args": {"lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-3}}
common = {"model": Net(), "min_clients": SITES, "num_rounds": ROUNDS, "train_script": "client.py"}
for name, recipe in (
    ("FedAvg", FedAvgRecipe(name="fedavg", **common)),
    ("FedAdam", FedOptRecipe(name="fedadam", train_args="--difference", optimizer_args=adam, device="cpu", **common)),
    ("Scaffold", ScaffoldRecipe(name="scaffold", train_args="--scaffold", **common)),
):
    result = recipe.execute(SimEnv(num_clients=SITES, workspace_root="workspace")).get_result()
    print(name, score(stored(result)))
