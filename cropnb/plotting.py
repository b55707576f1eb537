"""One palette, one style, and figures that answer to the pointer without a network.

Every drawing function takes and returns a matplotlib ``ax``; `show` is the only door to interactive figures.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cropnb.colours import PALETTE, SPARE, palette

_NETWORKS = ("#56B4E9", "#D55E00", "#0072B2", "#882255", "#44AA99", "#332288", "#999933")
LOADER = "cropnb-bokehjs"  # class of the script that loads BokehJS
SETS = {"train": "#0072B2", "validation": "#E69F00", "test": "#D55E00"}


def network_colours(names: Iterable[str]) -> dict[str, str]:
    """Colour of each network, by its place in the book."""
    return dict(zip(names, cycle(_NETWORKS)))


def style() -> None:
    """Set the book's figure style: opaque light background, sizes that fit a page column."""
    plt.rcdefaults()  # not what a matplotlibrc on this machine says
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        rc={
            "figure.figsize": (7.2, 4.0),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.titlesize": "medium",
            "legend.frameon": True,
        },
    )
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=[*PALETTE.values(), *SPARE])


def kilometres(ax: Axes) -> Axes:
    """Make a map of metres read in kilometres: ticks, labels of both axes, equal scales and no grid."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda metres, _: f"{metres / 1000:.10g}"))
    ax.set(xlabel="easting (km)", ylabel="northing (km)", aspect="equal")
    ax.grid(visible=False)
    return ax


def confusion(matrix: pd.DataFrame, ax: Axes) -> Axes:
    """Heat map of a confusion matrix, rows normalised, counts written in the cells.

    Parameters
    ----------
    matrix
        Counts, true classes in rows and predicted classes in columns, in the same order.
    """
    share = matrix.div(matrix.sum(axis=1), axis=0).fillna(0)
    written = share.map("{:.0%}".format).replace("%", " %\n", regex=True) + matrix.map("{:,.0f}".format)
    options = {"cmap": "Blues", "vmin": 0, "vmax": 1, "square": True, "cbar": False, "linewidths": 1}
    sns.heatmap(share, annot=written, fmt="", annot_kws={"size": "small"}, ax=ax, **options)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


_KINDS = {"STAR": "#009E73", "Conv": "#56B4E9", "Dense": "#E69F00", "Pool": "#CC79A7"}


def two_tables(wide: pd.DataFrame, axes: Sequence[Axes], titles: Sequence[str], step: int = 0) -> Sequence[Axes]:
    """The paper's numbers and ours as two heat maps on one scale, with a white line after every `step` rows.

    Parameters
    ----------
    wide
        Fractions in the column groups ``paper`` and ``estimate``; ``state`` says why a cell of ours is empty.
    """
    numbers = 100 * wide[["paper", "estimate"]].astype(float)
    options = {"cmap": "viridis", "vmin": np.nanmin(numbers), "vmax": np.nanmax(numbers), "cbar": False, "fmt": ".1f"}
    for ax, column, title in zip(axes, ("paper", "estimate"), titles, strict=True):
        table = numbers.loc[:, column]
        sns.heatmap(table, annot=True, annot_kws={"size": "small"}, linewidths=0.5, ax=ax, **options)
        ax.hlines(range(step, len(wide), step) if step else [], 0, table.shape[1], color="white", lw=3)
        ax.grid(visible=False)
        ax.set(xlabel="", ylabel="", title=title, facecolor="#EEEEEE")
    for (y, x), text in np.ndenumerate(wide["state"]):
        text = text.replace("not in this build", "–").replace(" here", "").replace(" ", "\n")
        axes[1].text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize="x-small")
    return axes


def network(layers: pd.DataFrame, ax: Axes) -> Axes:
    """A network as a column of bars from input to output, one a layer, as long as its output has numbers (log).

    Parameters
    ----------
    layers
        Table of ``cropnb.models.layers``; with a column ``published``, the parameters at the published width are
        written too.
    """
    for y, (_, kind, output, parameters, *published) in enumerate(layers.itertuples(index=False)):
        colour = next((c for word, c in _KINDS.items() if word in kind), "#D0D0D0")
        ax.barh(y, np.log10(np.prod(output)) + 0.1, color=colour, edgecolor="black", linewidth=0.5, height=0.72)
        sizes = " x ".join(map(str, output))
        of = f" of {published[0]:,}" if published else ""
        text = f"{kind}  {sizes}" + (f"  ({parameters:,}{of} parameters)" if parameters else "")
        ax.text(0.05, y, text, va="center", fontsize="small")
    ax.set_yticks(range(len(layers)), layers["layer"])
    ax.set(xlabel="numbers in the output", ylim=(len(layers) - 0.4, -0.6))
    top = int(np.log10(max(map(np.prod, layers["output"])))) + 1
    ax.set_xticks(range(top + 1), [f"$10^{i}$" for i in range(top + 1)])
    ax.set_xlim(0, max(top, 6))
    ax.grid(visible=False)
    return ax


def history(epochs: pd.DataFrame, axes: Sequence[Axes]) -> Sequence[Axes]:
    """Training and validation loss and accuracy by epoch, on two axes; the best validation is marked.

    Parameters
    ----------
    epochs
        History of ``cropnb.training.train``.
    """
    best = epochs.index[int(epochs["val_accuracy"].argmax())]
    for ax, name in zip(axes, ("loss", "accuracy"), strict=True):
        ax.plot(epochs.index, epochs[name], ".-", color=SETS["train"], label="training")
        ax.plot(epochs.index, epochs[f"val_{name}"], ".-", color=SETS["validation"], label="validation")
        ax.axvline(best, color="grey", linestyle=":", label="kept")
        ax.set(xlabel="epoch", ylabel=name)
    axes[0].legend()
    return axes


def errors(judged: pd.DataFrame, classes: Sequence[str], ax: Axes) -> Axes:
    """Map of test pixels: right ones grey, wrong ones in the colour of the true crop, each block with its accuracy.

    Parameters
    ----------
    judged
        Columns y, x (metres), block, true and right.
    """
    right, wrong = judged[judged["right"]], judged[~judged["right"]]
    ax.plot(right["x"], right["y"], ".", color="0.8", ms=3)
    for crop, colour in palette(classes).items():
        part = wrong[wrong["true"] == crop]
        ax.plot(part["x"], part["y"], "o", color=colour, ms=4, label=crop)
    for _, block in judged.groupby("block"):
        options: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": "small"}
        ax.text(block["x"].mean(), block["y"].max(), f"{block['right'].mean():.0%}", **options)
    ax.legend(title="true crop, wrong", loc="upper left", bbox_to_anchor=(1.01, 1))
    return kilometres(ax)


def learning_curve(scores: pd.DataFrame, base: float, ax: Axes) -> Axes:
    """Overall accuracy in per cent against the number of labels, a line a start, with intervals.

    Parameters
    ----------
    scores
        Index (start, labelled), columns ("overall_accuracy", estimate, low and high), as fractions; at most four
        starts, numbers in their order.
    base
        Accuracy without any network, a dotted line.
    """
    numbers = list(scores.index.unique("labelled"))
    colours = ("#0072B2", "#D55E00", "#44AA99", "#882255")
    for i, (start, colour) in enumerate(zip(scores.index.unique("start"), colours, strict=False)):
        part = 100 * scores.xs(start)["overall_accuracy"]
        at = [numbers.index(number) - 0.06 + 0.12 * i for number in part.index]
        ends = [part["estimate"] - part["low"], part["high"] - part["estimate"]]
        ax.errorbar(at, part["estimate"], ends, fmt="o-", color=colour, label=start)
    ax.axhline(100 * base, color="0.4", ls=":")
    ax.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    ax.set(xlabel="labelled of each crop", ylabel="overall accuracy (%)")
    ax.legend()
    return ax


def intervals(
    frame: pd.DataFrame, ax: Axes, color: str = "#0072B2", offset: float = 0.0, label: str | None = None
) -> Axes:
    """Estimates as dots with their intervals as bars, one row of `frame` a line.

    Parameters
    ----------
    frame
        Columns ``estimate, low, high``; the index names the lines.
    offset
        Vertical shift in lines, so that several frames can stand beside each other.
    """
    y = np.arange(len(frame)) + offset
    ax.hlines(y, frame["low"], frame["high"], color=color, linewidth=2)
    ax.plot(frame["estimate"], y, "o", color=color, label=label)
    ax.set_yticks(np.arange(len(frame)), [str(name) for name in frame.index])
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax


def beside(frame: pd.DataFrame, paper: Sequence[float], ax: Axes, label: str | None = None) -> Axes:
    """Differences as of `intervals`, the paper's numbers as diamonds below them, and a line at zero."""
    ax = intervals(frame, ax, label=label)
    ax.plot(paper, np.arange(len(frame)) + 0.25, "D", color="#D55E00", markersize=5, label="paper, Bei'an")
    ax.axvline(0, color="black", lw=0.8)
    ax.set_ylim(len(frame) - 0.4, -0.6)
    return ax


def accessors() -> None:
    """Give pandas, geopandas and xarray objects their ``.hvplot``.

    As ``import hvplot.pandas, hvplot.xarray``, less the scripts from the net which that import puts out.
    """
    from IPython.utils.capture import capture_output

    with capture_output():
        import hvplot.pandas
        import hvplot.xarray  # noqa: F401


def show(figure: Any, alt: str) -> HTML:
    """Show an hvPlot (HoloViews) or Bokeh figure wherever its notebook is opened, with a kernel or without, offline.

    The figure shrinks with its column. It carries BokehJS (1.3 MB), since JupyterLab, VS Code and nbconvert have
    none; the book's pages take that script out (its class is `LOADER`) and share one file.

    Parameters
    ----------
    figure
        HoloViews object without sliders (a slider needs a running kernel), or Bokeh model.
    alt
        What the figure shows, for readers who cannot see it.
    """
    import bokeh
    from bokeh.embed import components
    from bokeh.model import Model
    from bokeh.models import LayoutDOM, Plot

    if not isinstance(figure, Model):
        accessors()  # HoloViews draws with the backend that hvPlot loads
        import holoviews as hv

        figure = hv.render(figure, backend="bokeh")
    for part in figure.select({"type": LayoutDOM}):
        part.sizing_mode, part.max_width = "stretch_width", part.width
        if isinstance(part, Plot):
            part.update(sizing_mode="scale_width", frame_width=None, frame_height=None)
    script, div = components(figure)
    library = (Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js").read_text(encoding="utf-8")
    return HTML(
        f'<figure class="cropnb-interactive" role="group" aria-label="{escape(alt, quote=True)}">{div}</figure>'
        f'<script class="{LOADER}">if (!window.Bokeh) {{{library}}}</script>{script}'
    )


def seasonal(values: xr.DataArray, crops: Sequence[str] | np.ndarray, ax: Axes) -> Axes:
    """One band's season by crop: the median as a line, the middle half of the points as a band.

    Parameters
    ----------
    values
        DataArray (point, month) in the unit the y axis names.
    crops
        Crop of each point.
    """
    crop_of = np.asarray(crops)
    names = [crop for crop in PALETTE if crop in crop_of] + sorted(set(crop_of) - set(PALETTE))
    for crop, colour in palette(names).items():
        low, middle, high = np.quantile(
            values.transpose("point", "month").values[crop_of == crop], (0.25, 0.5, 0.75), 0
        )
        ax.fill_between(values["month"], low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(values["month"], middle, color=colour, label=crop)
    ax.set_xlabel("month")
    return ax


def class_map(codes: xr.DataArray, colours: Mapping[str, str], **hover: xr.DataArray) -> Any:
    """Interactive map of classes: zoom, and the class and further values at the pointer; for `show`.

    Parameters
    ----------
    codes
        DataArray (y, x) of positions in `colours`, coordinates in metres; other values are left white.
        No more than 200 x 200 pixels of it are drawn.
    colours
        Colour of each class, in the order of the codes.
    hover
        Further rasters of the same grid, by the names that the pointer shows.

    Returns
    -------
    HoloViews image, axes in kilometres.
    """
    from bokeh.models import CustomJSHover, FixedTicker

    accessors()
    known = (codes >= 0) & (codes < len(colours))
    raster = xr.Dataset({"class": codes.where(known), **hover}).drop_vars("spatial_ref", errors="ignore")
    step = -(-max(codes.shape) // 200)
    raster = raster.isel(y=slice(step // 2, None, step), x=slice(step // 2, None, step))
    raster = raster.assign_coords(y=raster["y"] / 1000, x=raster["x"] / 1000)
    height = 110 + round(420 * raster.sizes["y"] / raster.sizes["x"])  # the axes and the colour bar take 110 and 60
    figure = raster.hvplot.image(
        x="x", y="y", z="class", cmap=list(colours.values()),
        width=480, height=height, data_aspect=1, xlabel="easting (km)", ylabel="northing (km)",
    )  # fmt: skip
    words = CustomJSHover(args={"words": list(colours)}, code="return words[value] ?? ''")
    # hvPlot makes a table of a raster with `hover_cols`, which no image can hold.
    return figure.clone(raster, vdims=list(raster)).opts(
        clim=(-0.5, len(colours) - 0.5),
        tools=["hover"],
        hover_tooltips=[("class", "@image{custom}"), *((name, f"@{name}") for name in hover)],
        hover_formatters={"@image": words},
        colorbar_position="bottom",
        colorbar_opts={
            "ticker": FixedTicker(ticks=list(range(len(colours)))),
            "major_label_overrides": dict(enumerate(colours)),
            "bar_line_color": None, "height": 12,
        },
    )  # fmt: skip
