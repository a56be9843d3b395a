"""A release in one file: safetensors with the model's arrays, the template as bytes, and the card as metadata.

Nothing of it is read before its SHA-256 has been found under good signatures.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from polypfed.core.errors import MessageError, PolypfedError
from polypfed.core.messages import strict_json
from polypfed.core.model import ModelSpec, Vector
from polypfed.core.settings import whole
from polypfed.detect.template import Template
from polypfed.release.errors import ReleaseRefused

SCHEMA = "polypfed.release/1"
_KEY, _TEMPLATE, _MODEL = "polypfed", ":template", "model."


@dataclass(frozen=True)
class Card:
    """What people should know of a model, and what a device holds it to.

    Args:
        version: a counter; a device takes larger ones only. A step back is a new release with a larger one.
        name: of the model. text: the model card: purpose, data, limits.
        metrics: of its validation. provenance: run, round, head of the audit log.
        recall: least share of the boxes of a device's own reference images that must be found.
        seconds: most for one of them.

    Raises:
        ConfigError: the version is no whole number from 1.
    """

    version: int
    name: str = "polyp detector"
    text: str = "Research use only. No medical device."
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    recall: float = 0.5
    seconds: float = 2.0

    def __post_init__(self) -> None:
        whole("version", self.version, 1, 10**9)


@dataclass(frozen=True, eq=False)
class Release:
    """An opened release: card, layout, model (P,) float32, template."""

    card: Card
    spec: ModelSpec
    model: Vector
    template: Template


def write_bundle(card: Card, spec: ModelSpec, model: Vector, template: bytes) -> bytes:
    """The file's bytes, the same for the same content.

    Raises:
        ModelFileError: the template cannot be used. LayoutError: the model does not fit its layout.
    """
    Template(template)
    arrays: dict[str, Any] = {_MODEL + name: array for name, array in spec.views(model).items()}
    arrays[_TEMPLATE] = np.frombuffer(template, np.uint8)
    about = {"schema": SCHEMA, "card": asdict(card), "spec": spec.to_json()}
    return safetensors.numpy.save(arrays, {_KEY: json.dumps(about, sort_keys=True, allow_nan=False)})


def read_bundle(data: bytes, where: object = "release") -> Release:
    """The release in a file's bytes.

    Raises:
        ReleaseRefused: they are none, or not whole.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        about = strict_json(strict_json(data[8 : 8 + length])["__metadata__"][_KEY].encode())
        if about.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        spec = ModelSpec.from_json(about["spec"])
        arrays = safetensors.numpy.load(data)
        template = arrays.pop(_TEMPLATE)
        model = ModelSpec(spec.parts, spec.boundary).pack({k.removeprefix(_MODEL): v for k, v in arrays.items()})
        if not np.isfinite(model).all():
            raise ValueError("the model is not finite")
        return Release(Card(**about["card"]), spec, model, Template(template.tobytes(), where))
    except (KeyError, TypeError, ValueError, AttributeError, MessageError, safetensors.SafetensorError) as error:
        raise ReleaseRefused(f"is no release ({error})", where=where) from None
    except PolypfedError as error:
        raise ReleaseRefused(error.problem, where=where) from None


def bundle_of(path: Path) -> Release:
    """`read_bundle` of a file.

    Raises:
        ReleaseRefused: it cannot be read, or is no release.
    """
    try:
        return read_bundle(path.read_bytes(), path)
    except OSError as error:
        raise ReleaseRefused(f"cannot be read ({error.strerror})", where=path) from None
