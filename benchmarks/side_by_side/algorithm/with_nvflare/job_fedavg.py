"""The server's side of FedAvg in NVFlare, before the algorithm."""

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
from problem import ROUNDS, SITES, Net, score, stored

recipe = FedAvgRecipe(model=Net(), min_clients=SITES, num_rounds=ROUNDS, train_script="client_fedavg.py")
result = recipe.execute(SimEnv(num_clients=SITES, workspace_root="workspace")).get_result()
print("Final", score(stored(result)))
