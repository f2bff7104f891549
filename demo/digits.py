"""The demo: train a small net on scikit-learn's digits, then build it for this CPU under a budget.

The budget is a fraction of the original's latency, measured just before, so that it holds on any machine. Everything
the demo makes lies in ``.demo/``; nothing is downloaded.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".demo"
EDGECOMPILE = (sys.executable, "-m", "edgecompile")
#: The budget, as a part of the original float file's latency in ONNX Runtime.
FRACTION = 0.8
SEED = 0


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + x)


def network() -> nn.Module:
    """A small residual net for 32x32 images of one channel and ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Block(32),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        Block(64),
        Block(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def images() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits, enlarged from 8x8 to 32x32, in [0, 1]: arrays (N, 1, 32, 32) and (N,)."""
    digits = load_digits()
    enlarged = np.kron(digits.images / 16.0, np.ones((1, 4, 4)))
    return enlarged[:, None].astype(np.float32), digits.target.astype(np.int64)


def train(x: torch.Tensor, y: torch.Tensor, epochs: int = 3) -> nn.Module:
    """Train for some seconds; the demo is about what comes after."""
    torch.manual_seed(SEED)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * (len(x) // 64 + 1))
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for batch in order.split(64):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")
    return model.eval()


def edgecompile(*arguments: str, capture: bool = False, accept: tuple[int, ...] = (0,)) -> str:
    """Run the command line as a user would, showing the command."""
    print(f"\n$ edgecompile {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [*EDGECOMPILE, *arguments], cwd=FOLDER, text=True, stdout=subprocess.PIPE if capture else None, check=False
    )
    if done.returncode not in accept:
        sys.exit(done.returncode)
    return done.stdout or ""


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    x, y = images()
    # A test part that neither the training nor the build sees before the end.
    order = np.random.default_rng(SEED).permutation(len(x))
    test, rest = order[:597], order[597:]
    print("Train a small residual net on 1,200 of scikit-learn's digits")
    model = train(torch.from_numpy(x[rest]), torch.from_numpy(y[rest]))
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # names torchvision
    warnings.filterwarnings("ignore", category=FutureWarning)  # from inside the exporter
    torch.onnx.export(
        model, (torch.zeros(1, 1, 32, 32),), FOLDER / "digits.onnx", dynamo=True, verbose=False, external_data=False
    )
    np.savez(FOLDER / "train.npz", x=x[rest], labels=y[rest])
    np.savez(FOLDER / "test.npz", x=x[test], labels=y[test])

    bench = json.loads(edgecompile("bench", "digits.onnx", "--json", capture=True))
    original_ms = bench["measurements"][0]["median_ms"]
    budget_ms = FRACTION * original_ms
    print(f"the original takes {original_ms:.3f} ms here; the budget is {FRACTION:.0%} of it: {budget_ms:.3f} ms")
    edgecompile(
        *("build", "digits.onnx", "--target", "x86", "--budget-ms", f"{budget_ms:.4f}", "--max-drop", "2"),
        # Elsewhere a busy machine's figures do not count; a demo must not depend on what else runs on it.
        *("--data", "train.npz", "--eval", "test.npz", "--threads", "1", "--accept-throttled", "--out", "out"),
    )
    edgecompile("verify", "out")
    print(f"\nThe bundle is in {FOLDER / 'out'}")


if __name__ == "__main__":
    main()
