"""Estimates by a learned profile, as a build asks for them. An estimate is never reported as a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgecompile import estimate
from edgecompile.learn import views
from edgecompile.learn.predict import Predictor
from edgecompile.profiles import DeviceProfile, Learned
from edgecompile.tables import OperatorKey
from edgecompile.types import Measurement, Precision, RuntimeName


def table_for(profile: DeviceProfile, runtime: RuntimeName, precision: Precision, threads: int) -> Learned | None:
    """What the profile learned of exactly this; ``None`` where the plain cost table has to do.

    LiteRT unpacks the weights of a float16 file when it loads it, and computes as with the float32 file.
    """
    computed: Precision = "fp32" if (runtime, precision) == ("tflite", "fp16") else precision
    return profile.learned_for(runtime, computed, min(threads, profile.cores))


def latency(
    onnx_path: Path,
    profile: DeviceProfile,
    *,
    runtime: RuntimeName,
    precision: Precision,
    threads: int,
    percentile: float,
) -> Measurement | None:
    """The latency in milliseconds of a prepared ONNX file, ``estimated``; ``None`` where nothing was learned of it.

    The 95 % interval is the error of nets that were left out of the fit.
    """
    import onnx

    table = table_for(profile, runtime, precision, threads)
    if table is None:
        return None
    model = onnx.load(str(onnx_path))
    return estimate.measurement(
        Predictor(table).net_ms(views.of_table(model, table), views.input_elements(model)),
        profile,
        table.fit,
        runtime=runtime,
        wanted_threads=threads,
        percentile=percentile,
    )


def operator_times(
    keys: Sequence[OperatorKey], profile: DeviceProfile, *, runtime: RuntimeName, precision: Precision, threads: int
) -> dict[OperatorKey, float] | None:
    """The milliseconds of single operators within a net; ``None`` where nothing was learned of the runtime."""
    table = table_for(profile, runtime, precision, threads)
    return None if table is None else Predictor(table).operators_ms(keys)
