"""What every picture begins and ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scdisentangle._errors import InputError


def own_axes(ax: Sequence[Axes], n_panels: int) -> np.ndarray:
    """The caller's axes, one for each panel, shape ``(n_panels,)``.

    Raises
    ------
    InputError
        If there are fewer.
    """
    axes = np.ravel(np.asarray(ax, dtype=object))
    if len(axes) < n_panels:
        raise InputError(f"ax has {len(axes)} axes, but there are {n_panels} panels to draw.")
    return axes[:n_panels]


def finish(figure: Figure, *, show: bool, save: str | Path | None) -> None:
    """Write the figure to `save` and show it, where asked."""
    if save is not None:
        if not isinstance(save, str | Path):
            raise InputError(f"save={save!r} must be the path of a file, as 'picture.png'.")
        figure.savefig(save, dpi=150)
    if show:
        import matplotlib.pyplot as plt

        plt.show()
