"""What every picture ends with."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def finish(figure: Figure, *, show: bool, save: str | Path | None) -> None:
    """Write the figure to `save` and show it, where asked."""
    if save is not None:
        figure.savefig(save, dpi=150)
    if show:
        import matplotlib.pyplot as plt

        plt.show()
