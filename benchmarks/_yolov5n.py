"""A state dict with the names and shapes of YOLOv5n, made without torch."""

import numpy as np

YOLOV5N = """
0:16x3x6 1:32x16x3 2.cv1:16x32x1 2.cv2:16x32x1 2.cv3:32x32x1 2.m.0.cv1:16x16x1 2.m.0.cv2:16x16x3 3:64x32x3
4.cv1:32x64x1 4.cv2:32x64x1 4.cv3:64x64x1 4.m.0.cv1:32x32x1 4.m.0.cv2:32x32x3 4.m.1.cv1:32x32x1 4.m.1.cv2:32x32x3
5:128x64x3 6.cv1:64x128x1 6.cv2:64x128x1 6.cv3:128x128x1 6.m.0.cv1:64x64x1 6.m.0.cv2:64x64x3 6.m.1.cv1:64x64x1
6.m.1.cv2:64x64x3 6.m.2.cv1:64x64x1 6.m.2.cv2:64x64x3 7:256x128x3 8.cv1:128x256x1 8.cv2:128x256x1 8.cv3:256x256x1
8.m.0.cv1:128x128x1 8.m.0.cv2:128x128x3 9.cv1:128x256x1 9.cv2:256x512x1 10:128x256x1 13.cv1:64x256x1 13.cv2:64x256x1
13.cv3:128x128x1 13.m.0.cv1:64x64x1 13.m.0.cv2:64x64x3 14:64x128x1 17.cv1:32x128x1 17.cv2:32x128x1 17.cv3:64x64x1
17.m.0.cv1:32x32x1 17.m.0.cv2:32x32x3 18:64x64x3 20.cv1:64x128x1 20.cv2:64x128x1 20.cv3:128x128x1 20.m.0.cv1:64x64x1
20.m.0.cv2:64x64x3 21:128x128x3 23.cv1:128x256x1 23.cv2:128x256x1 23.cv3:256x256x1 23.m.0.cv1:128x128x1
23.m.0.cv2:128x128x3 24.cv2.0.0:64x64x3 24.cv2.0.1:64x64x3 24.cv2.1.0:64x128x3 24.cv2.1.1:64x64x3 24.cv2.2.0:64x256x3
24.cv2.2.1:64x64x3 24.cv3.0.0:80x64x3 24.cv3.0.1:80x80x3 24.cv3.1.0:80x128x3 24.cv3.1.1:80x80x3 24.cv3.2.0:80x256x3
24.cv3.2.1:80x80x3
"""
"""YOLOv5n, 80 classes: layer:outputs x inputs x kernel of each convolution with BatchNorm."""


def model() -> dict[str, np.ndarray]:
    """A state dict of 427 arrays and 2.67 million floats."""
    draw, found = np.random.default_rng(0), dict[str, np.ndarray]()
    for name, shape in (layer.split(":") for layer in YOLOV5N.split()):
        out, into, kernel = (int(n) for n in shape.split("x"))
        found[f"model.{name}.conv.weight"] = draw.standard_normal((out, into, kernel, kernel), np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"model.{name}.bn.{part}"] = draw.standard_normal(out, np.float32)
        found[f"model.{name}.bn.num_batches_tracked"] = np.array(5)
    for branch, width in (("cv2", 64), ("cv3", 80)):
        for scale in range(3):
            found[f"model.24.{branch}.{scale}.2.weight"] = draw.standard_normal((width, width, 1, 1), np.float32)
            found[f"model.24.{branch}.{scale}.2.bias"] = draw.standard_normal(width, np.float32)
    return found | {"model.24.dfl.conv.weight": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)}
