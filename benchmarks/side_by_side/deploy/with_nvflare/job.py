"""The job of a deployment of NVFlare."""

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.prod_env import ProdEnv
from problem import ROUNDS, SITES, Net, score, stored

recipe = FedAvgRecipe(name="small", model=Net(), min_clients=SITES, num_rounds=ROUNDS, train_script="client.py")
kit = "workspace/example_project/prod_00/admin@nvidia.com"
result = recipe.execute(ProdEnv(kit, username="admin@nvidia.com")).get_result()
print("Final", score(stored(result)))
