"""A site's images in memory: decoded once, at the detector's size; and the augmented batches made from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from polypfed.clients.training import split
from polypfed.core.errors import ConfigError
from polypfed.data import open_image, read_yolo
from polypfed.data.sample import Sample
from polypfed.detect.detections import Boxes
from polypfed.detect.letterbox import Pixels, shrink
from polypfed.detect.offline import ultralytics

Cache = Literal["ram", "none"]


class Frames(Sequence[Pixels]):
    """The images of a YOLO folder, (h, w, 3) uint8 RGB, longer side at `imgsz`. Nothing is ever written beside them.

    Args:
        folder: holds `images/` and `labels/`; may be read-only. Several are read as one.
        imgsz: side of the square the detector sees.
        cache: "ram" decodes each image once, "none" at each use.

    Raises:
        DataError: the folder is missing, empty, or a file in it cannot be used; names the file.
    """

    def __init__(self, folder: str | Path | Sequence[str | Path], imgsz: int, cache: Cache = "ram") -> None:
        folders = [folder] if isinstance(folder, str | Path) else folder
        self.samples = [sample for each in folders for sample in read_yolo(Path(each))]
        self.imgsz, self._cache = imgsz, cache
        self._pixels: dict[Path, Pixels] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._open(i) for i in range(*index.indices(len(self)))]
        return self._open(int(index))

    def _open(self, index: int) -> Pixels:
        sample = self.samples[index]
        if sample.image in self._pixels:
            return self._pixels[sample.image]
        pixels = shrink(self._read(sample), self.imgsz)
        if self._cache == "ram":
            self._pixels[sample.image] = pixels
        return pixels

    def _read(self, sample: Sample) -> Pixels:
        return open_image(sample.image)

    def boxes(self, index: int) -> Boxes:
        """(n, 4) float32 xyxy, pixels of the image as this class gives it."""
        sample, (height, width) = self.samples[index], self._open(index).shape[:2]
        ratio = np.array([width / sample.size[0], height / sample.size[1]] * 2, np.float32)
        return np.asarray(sample.boxes * ratio, np.float32)


@dataclass(frozen=True)
class Augment:
    """What is done to a training image, by ultralytics' own transforms at its own strengths.

    Args:
        mosaic: probability of joining it with three others of those kept.
        affine: shift by up to a tenth, scale by 0.5 to 1.5.
        hsv: change hue, saturation and brightness.
        flip: mirror left and right, half of the time.
        flip_vertical: mirror top and bottom, half of the time; an endoscope has no fixed top.
    """

    mosaic: float = 0.0
    affine: bool = True
    hsv: bool = True
    flip: bool = True
    flip_vertical: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.mosaic <= 1:
            raise ConfigError(f"a probability lies in [0, 1], got {self.mosaic!r}", where="augment.mosaic")


class Batches:
    """Augmented batches of some of the frames. It also is what ultralytics' Mosaic takes for its data set."""

    cache = "ram"  # Mosaic then draws partners from all frames kept, not from a buffer of those last seen

    def __init__(self, frames: Frames, kept: NDArray[np.intp], augment: Augment) -> None:
        self.frames, self.kept = frames, kept
        self._transforms = _transforms(self, frames.imgsz, augment)

    def __len__(self) -> int:
        return len(self.kept)

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """What Mosaic asks for: a fresh BGR image and its boxes."""
        from ultralytics.utils.instance import Instances

        which = int(self.kept[index])
        image = np.ascontiguousarray(self.frames[which][..., ::-1])
        boxes = self.frames.boxes(which)
        empty = np.zeros((0, 1000, 2), np.float32)
        return {
            "img": image,
            "cls": np.zeros((len(boxes), 1), np.float32),
            "instances": Instances(boxes, empty, bbox_format="xyxy", normalized=False),
            "resized_shape": image.shape[:2],
            "ori_shape": image.shape[:2],
            "im_file": self.frames.samples[which].image,
        }

    def epoch(self, batch: int, rng: np.random.Generator) -> Iterator[dict[str, torch.Tensor]]:
        """Every frame once, in an order drawn from `rng`; the augmentations draw from the global generators."""
        for rows in split(rng.permutation(len(self)), batch):
            yield _collate([self._augmented(int(i)) for i in rows], self.frames.imgsz)

    def _augmented(self, index: int) -> tuple[Pixels, Boxes]:
        label = self.get_image_and_label(index)
        for transform in self._transforms:
            label = transform(label)
        instances, (height, width) = label["instances"], label["img"].shape[:2]
        instances.convert_bbox("xywh")
        instances.normalize(width, height)
        return label["img"], np.asarray(instances.bboxes, np.float32)


def _transforms(batches: Batches, imgsz: int, augment: Augment) -> list[Any]:
    ultralytics()
    from ultralytics.data.augment import Mosaic, RandomFlip, RandomHSV, RandomPerspective

    shift, scale = (0.1, 0.5) if augment.affine else (0.0, 0.0)
    chain: list[Any] = [Mosaic(batches, imgsz=imgsz, p=augment.mosaic)] if augment.mosaic else []
    chain.append(RandomPerspective(degrees=0.0, translate=shift, scale=scale, shear=0.0, size=(imgsz, imgsz)))
    if augment.hsv:
        chain.append(RandomHSV(hgain=0.015, sgain=0.7, vgain=0.4))
    if augment.flip_vertical:
        chain.append(RandomFlip(p=0.5, direction="vertical"))
    if augment.flip:
        chain.append(RandomFlip(p=0.5, direction="horizontal"))
    return chain


def _collate(items: list[tuple[Pixels, Boxes]], imgsz: int) -> dict[str, torch.Tensor]:
    """As `v8DetectionLoss` wants it; the images are channels last in memory, which the CPU kernels like best."""
    pixels = np.empty((len(items), imgsz, imgsz, 3), np.uint8)
    for place, (image, _) in zip(pixels, items, strict=True):
        place[...] = image[..., ::-1]
    boxes = torch.from_numpy(np.concatenate([b.reshape(-1, 4) for _, b in items]))
    owner = np.repeat(np.arange(len(items)), [len(b) for _, b in items]).astype(np.float32)
    return {
        "img": torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255),
        "batch_idx": torch.from_numpy(owner),
        "cls": torch.zeros(len(boxes), 1),
        "bboxes": boxes,
    }
