"""`polypfed import-weights`: a PyTorch file of another's making as safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from polypfed.cli.show import console


def import_weights(
    foreign: Annotated[Path, typer.Argument(help="A .pt file that holds a state dict.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write, for model.warm_start.")],
) -> None:
    """Take the weights out of a PyTorch file without running what the file says; anything but weights is refused."""
    from polypfed.core.errors import ConfigError
    from polypfed.detect import foreign as reader

    if out.suffix != ".safetensors":
        raise ConfigError("must end in .safetensors", where=out, remedy="The suffix says how the file is read")
    found = reader.import_weights(foreign, out)
    left = f"; left out: {', '.join(found.skipped)}" if found.skipped else ""
    console.print(f"{out}: {found.arrays} arrays, {found.values} values{left}", markup=False)
