import json
import subprocess
import sys

import pytest

import polypfed
from polypfed import backends, clients, strategies, testing
from polypfed.core import errors

HEAVY = [
    "torch",
    "torchvision",
    "ultralytics",
    "flwr",
    "nvflare",
    "tenseal",
    "cv2",
    "matplotlib",
    "pydantic",
    "typer",
    "rich",
    "mlflow",
    "tensorboard",
    "prometheus_client",
]

NAMES = {
    polypfed: [
        "Client",
        "Evaluation",
        "Failure",
        "Federation",
        "GeometricMedian",
        "History",
        "Krum",
        "Mean",
        "Median",
        "ModelSpec",
        "MultiKrum",
        "NormClip",
        "NumpyClient",
        "PolypfedError",
        "Task",
        "TrimmedMean",
        "Update",
        "backends",
        "clients",
        "data",
        "privacy",
        "select",
        "strategies",
    ],
    backends: ["Backend", "Flower", "Host", "Local", "NVFlare"],
    clients: [
        "Client",
        "DetectorClient",
        "EdgeClient",
        "HasInitial",
        "NumpyClient",
        "Site",
        "TorchClient",
        "Vectorised",
    ],
    testing: [
        "ContractError",
        "SampleClient",
        "check_backend",
        "check_client",
        "check_stage",
        "check_strategy",
        "sample_sites",
    ],
    strategies: sorted(
        "Averaging Base Cohort Ditto FedAdagrad FedAdam FedAvg FedAvgM FedBN FedBuff FedDyn FedNova FedPer FedProx"
        " FedYogi KeepBest LocalRule PlainRule Registry Scaffold State Strategy Wrapper".split()
    ),
}


@pytest.mark.parametrize("room", NAMES, ids=lambda room: room.__name__)
def test_public_names_are_these(room: object) -> None:
    assert sorted(room.__all__) == NAMES[room]  # type: ignore[attr-defined,index]


@pytest.mark.parametrize("room", [polypfed, backends, strategies, testing], ids=lambda room: room.__name__)
def test_every_public_name_is_there(room: object) -> None:
    for name in room.__all__:  # type: ignore[attr-defined]
        assert hasattr(room, name), name


def test_the_version_is_stated() -> None:
    assert polypfed.__version__.count(".") == 2


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'polypfed.clients' has no attribute 'Nope'"):
        clients.Nope  # noqa: B018
    assert issubclass(polypfed.PolypfedError, Exception)
    assert polypfed.PolypfedError is errors.PolypfedError


def loaded(code: str) -> set[str]:
    """The modules in a fresh interpreter after `code`."""
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


RUN = """
import polypfed as pf
clients = [pf.NumpyClient(n, lambda x: x - 1, [0.0]) for n in "ab"]
pf.Federation(clients=clients, strategy=pf.strategies.FedAvg()).run(rounds=1, backend=pf.backends.Local())
"""


NAMES_ALONE = "import polypfed\nfor name in polypfed.__all__: getattr(polypfed, name)"


@pytest.mark.parametrize("code", [NAMES_ALONE, RUN], ids=["names", "run"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    modules = loaded(code)
    assert "numpy" in modules
    assert not modules & set(HEAVY)


def test_importing_the_package_loads_no_room() -> None:
    """A device that only detects pays for nothing else."""
    assert not {m for m in loaded("import polypfed") if m.startswith("polypfed.")}


def test_core_and_strategies_need_numpy_and_safetensors_only() -> None:
    code = "import polypfed.federation, polypfed.strategies, polypfed.core.rundir, polypfed.core.gate"
    roots = {name.partition(".")[0] for name in loaded(code) - loaded("")}
    foreign = {r for r in roots if r not in sys.stdlib_module_names and not r.startswith("_")}
    assert "polypfed" in foreign
    assert foreign - {"PIL", "cython_runtime"} == {"polypfed", "numpy", "safetensors"}
