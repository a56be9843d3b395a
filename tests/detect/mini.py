"""A detector small enough to be trained in a test: our own, with the pieces that YOLOv5 has, at 64 pixels.

`mini-64.zip` beside this file is its template: a graph without weights. It was made in the converter's environment by
`python tests/detect/mini.py`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

TEMPLATE = Path(__file__).with_name("mini-64.zip")
SIZE, BINS = 64, 16


class Conv(nn.Module):
    def __init__(self, deep: int, out: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(deep, out, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)
        self.act = nn.SiLU()
        self.fused = False

    def forward(self, x):
        return self.act(self.conv(x) if self.fused else self.bn(self.conv(x)))


class Mini(nn.Module):
    """Two levels, strides 8 and 16; a residual, a concatenation, a pooling, an enlargement."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.third = Conv(3, 8, 3, 2), Conv(8, 12, 3, 2), Conv(12, 16, 3, 2)
        self.more, self.fourth, self.join = Conv(16, 16), Conv(16, 16, 3, 2), Conv(32, 16, 1)
        self.pool, self.up = nn.MaxPool2d(3, 1, 1), nn.Upsample(scale_factor=2)
        self.boxes = nn.ModuleList([nn.Conv2d(16, 4 * BINS, 1), nn.Conv2d(16, 4 * BINS, 1)])
        self.scores = nn.ModuleList([nn.Conv2d(16, 1, 1), nn.Conv2d(16, 1, 1)])
        for score in self.scores:
            nn.init.constant_(score.bias, -4.0)

    def levels(self, x):
        x = self.third(self.down(self.stem(x)))
        x = x + self.more(x)
        deep = self.fourth(x)
        deep = deep + self.pool(deep)
        return [self.join(torch.cat([x, self.up(deep)], 1)), deep]

    def forward(self, x):
        out = []
        for box, score, level in zip(self.boxes, self.scores, self.levels(x), strict=True):
            out += [box(level), score(level).sigmoid()]
        return tuple(out)

    def fuse(self, verbose: bool = False) -> None:
        for module in self.modules():
            if isinstance(module, Conv):
                old = module.conv
                module.conv = nn.Conv2d(
                    old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=True
                )
                module.fused = True
                del module.bn


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Live float arrays by name, as a client's layout has them."""
    return {n: t.numpy().copy() for n, t in model.state_dict().items() if t.is_floating_point()}


def random_arrays(seed: int) -> dict[str, np.ndarray]:
    """A model with random weights and statistics."""
    rng = np.random.default_rng(seed)
    arrays = arrays_of(Mini())
    for name, array in arrays.items():
        array[...] = rng.normal(0, 0.3, array.shape)
        if name.endswith("running_var"):
            array[...] = rng.uniform(0.2, 2, array.shape)
    return arrays


def disc(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy frame, (64, 64, 3) uint8, with one disc or none, and its boxes, (n, 4) xyxy.

    Discs come in all contrasts down to nothing, so that confidences cover their whole range.
    """
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = rng.normal((130, 90, 90), 10, (SIZE, SIZE, 3))
    boxes = []
    if rng.random() < 0.8:
        radius = rng.integers(7, 14)
        cx, cy = (int(v) for v in rng.integers(radius, SIZE - radius, 2))
        image[(rows - cy) ** 2 + (columns - cx) ** 2 < radius**2] += np.array([70, 60, 40]) * rng.uniform(0.1, 1)
        boxes.append([cx - radius, cy - radius, cx + radius, cy + radius])
    return image.clip(0, 255).astype(np.uint8), np.array(boxes, np.float32).reshape(-1, 4)


def trained(steps: int = 250, seed: int = 0) -> Mini:
    """A few seconds: scores by cross-entropy on the cell of the disc's centre, distances by their logarithm."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Mini().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps)
    for _ in range(steps):
        some = [disc(rng) for _ in range(16)]
        frames = torch.from_numpy(np.stack([image for image, _ in some])).permute(0, 3, 1, 2).float() / 255
        loss = _loss(model, frames, [boxes for _, boxes in some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _loss(model: Mini, frames: torch.Tensor, boxes: list[np.ndarray]) -> torch.Tensor:
    owner = torch.tensor([i for i, found in enumerate(boxes) for _ in found])
    edges = torch.from_numpy(np.concatenate(boxes))
    large = edges[:, 2] - edges[:, 0] >= 20
    total = torch.zeros(())
    for number, level in enumerate(model.levels(frames)):
        stride, mine = 8 * 2**number, large == bool(number)
        i, box = owner[mine], edges[mine]
        column, row = ((box[:, k] + box[:, k + 2]) // 2 // stride for k in (0, 1))
        cell = torch.stack([column, row], 1).long()
        logits, bins = model.scores[number](level)[:, 0], model.boxes[number](level)
        want = torch.zeros_like(logits)
        want[i, cell[:, 1], cell[:, 0]] = 1
        centre = (cell + 0.5) * stride
        far = (torch.cat([centre - box[:, :2], box[:, 2:] - centre], 1) / stride).clamp(0, BINS - 1.01)
        shares = bins[i, :, cell[:, 1], cell[:, 0]].reshape(-1, 4, BINS).log_softmax(2)
        low = far.long()
        first, second = (shares.gather(2, low[..., None] + k)[..., 0] for k in (0, 1))
        total = total - (first * (1 - far + low) + second * (far - low)).mean(1).sum()
        total = total + nn.functional.binary_cross_entropy_with_logits(logits, want, reduction="sum")
    return total / len(boxes)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from polypfed.detect.export.worker import make_template

    mini = Mini().eval()
    make_template(mini, mini, 4, SIZE, "mini", 1, TEMPLATE)
