"""Figures of finished runs for papers; one file each, listed in FIGURES."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edkd.figures.drawing import Drawing, Options


class Figure(NamedTuple):
    """A kind of figure."""

    help: str
    source: str
    """The work that describes it; "" for what needs no source."""
    module: str
    """Has `draw(paths, options, say) -> Drawing`; imported when it is used."""

    @property
    def draw(self) -> "Callable[[Sequence[Path], Options, Callable[[str], None]], Drawing]":
        """Draws the figure of runs."""
        function: Callable[..., Drawing] = importlib.import_module(self.module).draw
        return function


FIGURES = {
    "curves": Figure(
        "accuracy, loss or learning rate over the epochs, with a band over seeds",
        "",
        "edkd.figures.curves",
    ),
    "tsne": Figure(
        "features before the classifier in two dimensions (t-SNE), coloured by class",
        "van der Maaten and Hinton, JMLR 2008",
        "edkd.figures.tsne",
    ),
    "correlation": Figure(
        "difference between the class correlations of teacher and student logits",
        "Tian et al., ICLR 2020, arXiv:1910.10699",
        "edkd.figures.correlation",
    ),
    "cka": Figure(
        "similarity of the stages of two networks, by linear CKA",
        "Kornblith et al., ICML 2019, arXiv:1905.00414; Nguyen et al., ICLR 2021, arXiv:2010.15327",
        "edkd.figures.cka",
    ),
    "landscape": Figure(
        "loss around the trained weights, in filter-normalised random directions",
        "Li et al., NeurIPS 2018, arXiv:1712.09913",
        "edkd.figures.landscape",
    ),
}
"""By the word that the command takes."""
