"""The server's side of the new algorithm in NVFlare."""

from nvflare.apis.dxo import DataKind
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
from problem import ROUNDS, SITES, Net, score, stored
from sign import Sign

recipe = FedAvgRecipe(
    model=Net(),
    min_clients=SITES,
    num_rounds=ROUNDS,
    train_script="client_signprox.py",
    train_args="--mu 0.1",
    aggregator=Sign(eta=0.1, beta=0.9),
    aggregator_data_kind=DataKind.WEIGHT_DIFF,
)
result = recipe.execute(SimEnv(num_clients=SITES, workspace_root="workspace")).get_result()
print("Final", score(stored(result)))
