"""Where a limit is missed: what would buy it, with figures where there are some."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

from edgecompile import estimate, graph, profiles, search
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.pipeline.attempts import fastest
from edgecompile.pipeline.changing import changed
from edgecompile.pipeline.job import ANY, Job
from edgecompile.techniques import resolution, student
from edgecompile.types import Candidate, OperatorCost

#: Other devices that are named at most.
_DEVICES = 2
#: The share of the pixels' height and width that a smaller image is tried at.
_SHARE = 0.75


def with_help(job: Job, candidates: Sequence[Candidate], choice: search.Choice) -> search.Choice:
    """The choice with further hints, where it keeps a limit not."""
    if choice.status != "not met" or job.request.plan is not None:
        return choice
    usable = [c for c in candidates if c.failure is None and c.measurement is not None]
    hints = list(choice.help)
    if not any(_fast_enough(job, c) for c in usable):
        hints += [*_smaller_model(job), *_resolution(job, candidates), *_students(job), *_threads(job)]
        hints += _devices(job, choice.candidate)
    elif search.accuracy_violations(choice.candidate.accuracy, job.budget):
        hints += _training(job)
    return replace(choice, help=tuple(dict.fromkeys(hints)))


def _fast_enough(job: Job, candidate: Candidate) -> bool:
    return candidate.measurement is not None and candidate.measurement.meets(job.budget.latency_ms)


def _smaller_model(job: Job) -> list[str]:
    if job.data.synthetic:
        return ["a smaller model: channels are removed by what they do on your images (--data)"]
    return [] if job.request.prune else ["a smaller model: --no-prune kept the model whole"]


def _resolution(job: Job, candidates: Sequence[Candidate]) -> list[str]:
    """A smaller image, and about what it would take; nothing where the network or the data allow none."""
    bases = fastest(candidates)
    if job.data.synthetic:
        return ["a smaller input, where the model takes one (--input-shape)"]
    if job.request.resolutions or not bases or bases[0].measurement is None:
        return []
    try:
        height, width = resolution.spatial_size(job.model)
        size = 8 * math.floor(_SHARE * min(height, width) / 8)
        if size < 8:
            return []
        scale = size / min(height, width)
        step = resolution.step(round(height * scale), round(width * scale))
        costs = changed(job, replace(ANY, steps=(step,))).costs
    except (UnsupportedModelError, InputError):
        return []
    ms = bases[0].measurement.value_ms * _macs(costs) / max(_macs(job.costs), 1)
    return [f"a smaller image: --resolutions {size} would make {bases[0].plan.label} take about {ms:.3g} ms"]


def _macs(costs: Sequence[OperatorCost]) -> int:
    return sum(cost.macs for cost in costs)


def _students(job: Job) -> list[str]:
    if job.request.student or job.data.synthetic:
        return []
    try:
        student.interface(job.model)
    except UnsupportedModelError:
        return []
    return [
        "a small net of another kind: --train --student trains some from nothing "
        f"(at least {student.MIN_SAMPLES} images in --data, no labels)"
    ]


def _training(job: Job) -> list[str]:
    if job.data.synthetic:
        return []
    if not job.request.train:
        return ["training gets back part of what a smaller model loses: --train, with as many images as there are"]
    return [f"more training: --time-limit above {job.request.time_limit_min:g}, or more images in --data"]


def _threads(job: Job) -> list[str]:
    cores = job.profile.cores
    if job.here and job.request.on in (None, "local"):
        cores = min(cores, len(os.sched_getaffinity(0)))  # a profile's cores are those of its kind of device
    # A GPU takes its work from one thread.
    by_cpu = any(runtime.name != "tensorrt" for runtime in job.profile.runtimes)
    return [f"more threads: --threads up to {cores}"] if by_cpu and job.threads < cores else []


def _devices(job: Job, candidate: Candidate) -> list[str]:
    """The slowest devices of the same family that are estimated to run the file that comes nearest in time."""
    costs = graph.operators(changed(job, candidate.plan).model.path)
    plan, found = candidate.plan, []
    for profile in profiles.all_profiles(content_dir=job.request.content_dir):
        related = _family(profile) == _family(job.profile) and profile.name != job.profile.name
        if not related or not estimate.supported(profile, plan.runtime, plan.precision):
            continue
        guess = estimate.latency(costs, profile, runtime=plan.runtime, precision=plan.precision)
        if guess.meets(job.budget.latency_ms):
            found.append((guess.value_ms, profile.name))
    named = [f"{name} is estimated to take {ms:.3g} ms" for ms, name in sorted(found, reverse=True)[:_DEVICES]]
    return [f"a faster device: {'; '.join(named)}"] if named else ["a faster device"]


def _family(profile: profiles.DeviceProfile) -> str:
    """``raspberry``, ``jetson``, ``pixel``, ...: who asks for a board is not helped by a phone."""
    return profile.name.split("-")[0]
