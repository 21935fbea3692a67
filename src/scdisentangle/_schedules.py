r"""What changes while training: pure functions of its progress.

Progress :math:`p \in [0, 1]` is the share of training that is done, ``epoch / max_epochs``.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Literal

NoiseSchedule = Literal["linear", "cosine", "constant"]
LearningRateSchedule = Literal["cosine", "constant"]


def noise_level(
    progress: float, start: float, end: float, schedule: NoiseSchedule = "linear"
) -> float:
    r"""Standard deviation of the Gaussian noise that is added to the normalised input.

    ``"linear"`` is :math:`s + (e - s)\,p`; ``"cosine"`` is
    :math:`e + (s - e)\,(1 + \cos \pi p) / 2`, flat at both ends; ``"constant"`` is :math:`s`.

    Parameters
    ----------
    progress
        Share of training that is done, in [0, 1].
    start, end
        Level at the beginning and at the end, in units of the normalised input.
    schedule
        Course between the two.
    """
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * progress
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def reconstruction_weight(progress: float, floor: float | None = None) -> float:
    r"""Factor on the reconstruction term: :math:`\max(1 - p, \mathrm{floor})`.

    Parameters
    ----------
    progress
        Share of training that is done, in [0, 1].
    floor
        Smallest factor, in [0, 1]. ``None`` switches the schedule off: the factor stays 1.
    """
    return 1.0 if floor is None else max(1.0 - progress, floor)


def disentanglement_weight(progress: float, warmup: float = 0.0, ramp: float = 0.0) -> float:
    r"""Factor on the disentanglement term: 0 in the warm-up, then a linear ramp to 1.

    :math:`\min(\max((p - \mathrm{warmup}) / \mathrm{ramp}, 0), 1)`, and a step where ``ramp`` is 0.

    Parameters
    ----------
    progress
        Share of training that is done, in [0, 1].
    warmup
        Share of training with reconstruction and classification only.
    ramp
        Share of training over which the factor then rises.
    """
    if progress < warmup:
        return 0.0
    return 1.0 if ramp == 0 else min((progress - warmup) / ramp, 1.0)


def interval_factor(step: int, n_steps: float, interval: int) -> float | None:
    """Factor on a term that some steps of an epoch have, or ``None`` in a step without it.

    Its mean over the steps of an epoch is 1.

    Source: lazy regularization in Karras et al. (2020), Analyzing and improving the image quality
    of StyleGAN, CVPR.

    Parameters
    ----------
    step
        Index of the step in its epoch.
    n_steps
        Steps of an epoch; infinite if nobody knows.
    interval
        Steps from one with the term to the next; the first step of an epoch has it.
    """
    if step % interval:
        return None
    return n_steps / math.ceil(n_steps / interval) if math.isfinite(n_steps) else float(interval)


def learning_rate_factor(progress: float, schedule: LearningRateSchedule = "cosine") -> float:
    r"""Factor on the learning rate: :math:`(1 + \cos \pi p) / 2`, or 1 if ``"constant"``.

    Source: Loshchilov and Hutter (2017), SGDR: stochastic gradient descent with warm restarts.

    Parameters
    ----------
    progress
        Share of training that is done, in [0, 1].
    schedule
        Course over training.
    """
    return 1.0 if schedule == "constant" else (1 + math.cos(math.pi * progress)) / 2


def warmup_factor(progress: float, warmup: float = 0.0) -> float:
    r"""Factor on the learning rate in its warm-up, :math:`\min(p / \mathrm{warmup}, 1)`.

    Source: Goyal et al. (2017), Accurate, large minibatch SGD: training ImageNet in 1 hour.

    Parameters
    ----------
    progress
        Share of training that is done as a step ends, in (0, 1].
    warmup
        Share of training over which the factor rises.
    """
    return 1.0 if warmup == 0 else min(progress / warmup, 1.0)


def as_share(length: int | float, max_epochs: int) -> float:
    """A length in epochs (an ``int``) or as a share of training (a ``float``), as a share.

    Parameters
    ----------
    length
        Number of epochs as an ``int``, or a share in [0, 1] as a ``float``.
    max_epochs
        Epochs in the whole training.
    """
    return length / max_epochs if isinstance(length, Integral) else length
