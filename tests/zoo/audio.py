"""Nets on sound and other series: keyword spotting, anomaly detection, a small LSTM.

DS-CNN: Zhang et al., "Hello Edge", 2017 (arXiv:1711.07128), in the size of MLPerf Tiny; the autoencoder is MLPerf
Tiny's (Banbury et al. 2021, arXiv:2106.07597). LSTM: Hochreiter and Schmidhuber 1997.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tests.zoo.common import ConvBn, Head, Net


def ds_cnn(width: int = 64, blocks: int = 4, classes: int = 12) -> nn.Module:
    """49 frames of 10 cepstral coefficients as an image of one channel."""
    layers: list[nn.Module] = [ConvBn(1, width, (10, 4), 2, padding=(5, 1)), nn.Dropout(0.2)]
    for _ in range(blocks):
        layers += [ConvBn(width, width, 3, groups=width), ConvBn(width, width)]
    return nn.Sequential(*layers, nn.Dropout(0.4), Head(width, classes))


def _unit(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv1d(cin, cout, kernel, stride, padding, dilation, groups, bias=False), nn.BatchNorm1d(cout), nn.ReLU()
    )


def ds_cnn_1d(coefficients: int = 40, width: int = 64, classes: int = 12) -> nn.Module:
    """The same over time only: the coefficients are channels, the kernels are one-dimensional and partly dilated."""
    layers: list[nn.Module] = [_unit(coefficients, width, 5, 2)]
    for dilation in (1, 2, 4):
        layers += [_unit(width, width, 9, groups=width, dilation=dilation), _unit(width, width, 1)]
    return nn.Sequential(*layers, nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, classes))


def autoencoder(values: int = 640, width: int = 128, code: int = 8) -> nn.Module:
    """Dense layers with norms down to the code and back."""
    layers: list[nn.Module] = []
    cin = values
    for cout in (*(width,) * 4, code, *(width,) * 4):
        layers += [nn.Linear(cin, cout), nn.BatchNorm1d(cout), nn.ReLU()]
        cin = cout
    return nn.Sequential(*layers, nn.Linear(cin, values))


class Lstm(nn.Module):
    """One or more LSTM layers over the whole series, read out at the last step."""

    def __init__(self, inputs: int, hidden: int, layers: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.lstm(series)[0][:, -1])


NETS = {
    "ds_cnn": Net(
        full=ds_cnn,
        shapes={"features": (1, 1, 49, 10)},
        small=partial(ds_cnn, 8, 2),
        small_shapes={"features": (1, 1, 25, 10)},
        # MLPerf Tiny's 24,908 without its 576 biases before norms and 1,152 running statistics.
        parameters=23_180,
    ),
    "ds_cnn_1d": Net(
        full=ds_cnn_1d,
        shapes={"features": (1, 40, 98)},
        small=partial(ds_cnn_1d, 10, 8),
        small_shapes={"features": (1, 10, 50)},
    ),
    "anomaly_autoencoder": Net(
        full=autoencoder,
        shapes={"frames": (1, 640)},
        small=partial(autoencoder, 40, 16, 4),
        small_shapes={"frames": (1, 40)},
        # MLPerf Tiny's 269,992 without 2,064 running statistics.
        parameters=267_928,
    ),
    "lstm": Net(
        full=partial(Lstm, 40, 64, 2),
        shapes={"series": (1, 50, 40)},
        small=partial(Lstm, 6, 8),
        small_shapes={"series": (1, 7, 6)},
    ),
}
