"""A tiny trained classifier and its data, for tests that run the whole job in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with ``model.onnx``, ``train.npz``, ``test.npz`` (labelled) and ``flat.npz`` (no labels)."""

    folder: Path
    model: Path
    train: Path
    test: Path
    flat: Path


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 3x16x16 images whose bright quadrant is the class: arrays (N, 3, 16, 16) and (N,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    x = generator.normal(0, 0.4, (count, 3, 16, 16)).astype(np.float32)
    for image, label in zip(x, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 0.5
    return x, labels.astype(np.int64)


def make_project(folder: Path) -> Project:
    """Train for a second and write everything down."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    x, y = images(400, 1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    model.eval()
    project = Project(
        folder=folder,
        model=folder / "model.onnx",
        train=folder / "train.npz",
        test=folder / "test.npz",
        flat=folder / "flat.npz",
    )
    torch.onnx.export(
        model, (inputs[:1],), project.model, dynamo=True, verbose=False, external_data=False,
        input_names=["image"], output_names=["logits"],
    )  # fmt: skip
    np.savez(project.train, image=x, labels=y)
    test_x, test_y = images(300, 2)
    np.savez(project.test, image=test_x, labels=test_y)
    np.savez(project.flat, image=x)
    return project
