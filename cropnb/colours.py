"""The colour of a crop: a datum of every map and figure, and no drawing."""

from collections.abc import Sequence

# Okabe and Ito's colours, told apart by colour-blind readers; one per crop, everywhere.
PALETTE = {"maize": "#E69F00", "soybean": "#009E73", "wheat": "#CC79A7", "other": "#7A7A7A"}
SPARE = ("#56B4E9", "#D55E00", "#0072B2", "#F0E442", "#44AA99", "#882255", "#332288", "#999933")


def palette(classes: Sequence[str]) -> dict[str, str]:
    """Colour of each class: the fixed one of `PALETTE`, or the next spare one for crops it does not name."""
    spare = iter(SPARE * (len(classes) // len(SPARE) + 1))
    return {name: PALETTE.get(name) or next(spare) for name in classes}
