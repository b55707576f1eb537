"""Training step and inference of ConvSTAR and 3D-ConvSTAR beside ConvLSTM networks of the same widths.

The ConvLSTM networks are ours with every ConvSTAR layer replaced by `keras.layers.ConvLSTM2D`. Both take
turns on batches of one size, so the ratio of their medians survives a busy machine. Where PyTorch is
installed, a loop over dates in its usual style stands beside ConvSTAR.

    python benchmarks/bench_networks.py [--width 0.25] [--batch 128] [--dates 26] [--size 11] [--repeats 5]
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as cropnb does, which comes too late here

import keras
import numpy as np

from cropnb import models, project, training
from cropnb.models import conv3dstar, convstar


def conv_lstm(filters, *, output_tanh=True, gate_bias=-1.0, **kwargs):
    """Keras's own layer, called with the arguments of `ConvSTAR`."""
    return keras.layers.ConvLSTM2D(filters, 3, padding="same", **kwargs)


def build(name, shape, width, layer):
    """The network called `name` with `layer` in the place of every ConvSTAR layer."""
    own = convstar.ConvSTAR
    convstar.ConvSTAR = conv3dstar.ConvSTAR = layer
    try:
        return models.get(name)(shape, 4, width)
    finally:
        convstar.ConvSTAR = conv3dstar.ConvSTAR = own


def keras_steps(model, x, y):
    """Functions that run one training step and one inference of a Keras model."""
    model.compile(training.CoupledAdam(), "categorical_crossentropy")
    return lambda: model.train_on_batch(x, y), lambda: model.predict_on_batch(x)


def torch_steps(width, x, y):
    """The same of a three-layer ConvSTAR as one writes it in PyTorch: one date and layer after another."""
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count())
    hidden = round(64 * width)

    class Cell(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.gate = nn.Conv2d(channels + hidden, hidden, 3, padding=1)
            self.update = nn.Conv2d(channels, hidden, 3, padding=1)

        def forward(self, x, state):
            keep = torch.sigmoid(self.gate(torch.cat([x, state], 1)))
            return torch.tanh(keep * state + (1 - keep) * torch.tanh(self.update(x)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.ModuleList([Cell(3), Cell(hidden), Cell(hidden)])
            self.head = nn.Conv2d(hidden, 4, 3)

        def forward(self, x):
            states = [x.new_zeros(len(x), hidden, *x.shape[3:]) for _ in self.cells]
            for date in x.unbind(1):
                for i, cell in enumerate(self.cells):
                    states[i] = date = cell(date, states[i])
            centre = date.shape[2] // 2
            return self.head(date[..., centre - 1 : centre + 2, centre - 1 : centre + 2]).flatten(1)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = Network().to(device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-4)
    inputs = torch.tensor(x.transpose(0, 1, 4, 2, 3).copy(), device=device)
    labels = torch.tensor(y.argmax(1), device=device)

    def train():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer():
        with torch.inference_mode():
            return network(inputs).cpu()

    return train, infer


def elsewhere():
    """The steps of `torch_steps` in a process of their own: PyTorch and TensorFlow in one crash each other."""
    worker = subprocess.Popen(
        [sys.executable, *sys.argv, "--torch-worker"],
        # Threads that spin at barriers while others hold a core make it up to ten times slower.
        env=os.environ | {"KERAS_BACKEND": "torch", "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def step(task):
        worker.stdin.write(f"{task}\n")
        if not worker.stdout.readline():
            raise RuntimeError("The PyTorch process ended before its step; see its message above.")

    step("ready")
    return lambda: step("0"), lambda: step("1")


def serve(steps):
    """Run the steps whose numbers come in on stdin, and answer each with a line, until stdin closes."""
    for line in sys.stdin:
        if line.strip().isdigit():
            steps[int(line)]()
        print("done", flush=True)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(contenders, repeats):
    """Print first call and median of each contender, taking turns, and the ratio of each to the first one."""
    for i, task in enumerate(("training step", "inference")):
        first = {name: seconds(steps[i]) for name, steps in contenders.items()}
        times = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, steps in contenders.items():
                times[name].append(seconds(steps[i]))
        medians = {name: statistics.median(values) for name, values in times.items()}
        ours = next(iter(medians.values()))
        for name, median in medians.items():
            ratio = f"{median / ours:5.2f} x"
            spread = f"{min(times[name]):.3f} to {max(times[name]):.3f} s"
            print(f"  {task:13}  {name:10} {median:7.3f} s ({spread})  {ratio}   first call {first[name]:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=0.25, help="fraction of the published filters")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dates", type=int, default=26)
    parser.add_argument("--size", type=int, default=11, help="pixels along a side of a patch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--network", choices=("convstar", "conv3dstar"), help="this one alone")
    parser.add_argument("--torch-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.dates, options.size, options.size, 3)
    x = rng.random((options.batch, *shape), dtype="float32")
    y = np.eye(4, dtype="float32")[rng.integers(4, size=options.batch)]
    if options.torch_worker:
        serve(torch_steps(options.width, x, y))
        return
    training.prepare(0)
    print(f"{project.device()}, {keras.backend.backend()}, patches {x.shape}, width {options.width}")
    for name in (options.network,) if options.network else ("convstar", "conv3dstar"):
        print(models.DISPLAY_NAMES[name])
        contenders = {
            "ours": keras_steps(build(name, shape, options.width, convstar.ConvSTAR), x, y),
            "ConvLSTM2D": keras_steps(build(name, shape, options.width, conv_lstm), x, y),
        }
        if name == "convstar" and importlib.util.find_spec("torch"):
            contenders["PyTorch"] = elsewhere()
        compare(contenders, options.repeats)


if __name__ == "__main__":
    main()
