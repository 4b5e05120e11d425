"""Trains the two digit classifiers of this folder and exports them to ONNX, with their samples.

Run ``python examples/digits/train.py`` from the repository's root; it takes about a minute on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

OPSET = 18
SEED = 0
EPOCHS = 100
BATCH = 64
EVALUATION_ITEMS = 360
CALIBRATION_ITEMS = 256
EXPORTER_METADATA = "pkg.torch."
"""Prefix of the metadata that the exporter writes on nodes and values; its stack traces name local files."""


class ConvBlock(nn.Module):
    """Convolution, batch normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int, *, groups: int = 1, stride: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        return functional.relu(self.norm(self.conv(x)))


class ConvNet(nn.Module):
    """A small residual network with one depthwise separable block.

    It scales its input as many exported networks do, inside the graph: pixels of 0 to 16 become about -1 to 1.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvBlock(1, width)
        self.first = ConvBlock(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.depthwise = ConvBlock(width, width, groups=width, stride=2)
        self.pointwise = ConvBlock(width, 2 * width, kernel=1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps images ``[N, 1, 8, 8]`` to logits ``[N, 10]``."""
        x = self.stem(image / 8.0 - 1.0)
        x = functional.relu(x + self.second(self.first(x)))
        x = self.pointwise(self.depthwise(x))
        return self.head(self.dropout(x.mean(dim=(2, 3))))


class AttentionLayer(nn.Module):
    """A pre-norm transformer layer: multi-head self-attention, then a GELU network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens ``[N, T, width]`` to tokens of the same shape."""
        x = x + self._attend(self.attention_norm(x))
        return x + self.contract(functional.gelu(self.expand(self.network_norm(x))))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.projection(attended.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class AttentionNet(nn.Module):
    """A vision transformer of two layers on 16 patches of 2 x 2 pixels."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(*(AttentionLayer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps images ``[N, 1, 8, 8]`` to logits ``[N, 10]``."""
        tokens = self.patches(image / 8.0 - 1.0).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.layers(tokens + self.position)).mean(dim=1))


def load_data() -> tuple[np.ndarray, np.ndarray]:
    """Images ``[1797, 1, 8, 8]`` float32 of 0 to 16 and labels ``[1797]`` int64, shuffled."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    images = digits.images[order].astype(np.float32)[:, None]
    return images, digits.target[order].astype(np.int64)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Fits ``model`` with AdamW, a one-cycle learning rate and shifts of one pixel, and leaves it in evaluation mode."""
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        loss = functional.cross_entropy(model(_shift(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
        optimizer.step()
        schedule.step()
    model.eval()


def _shift(images: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(images, (1, 1, 1, 1))
    item = torch.arange(len(images))[:, None, None]
    down, across = (torch.randint(3, (len(images), 1)) + torch.arange(8) for _ in range(2))
    return padded[item, 0, down[:, :, None], across[:, None, :]][:, None]


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of ``images`` that ``model`` gets right."""
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())


def export(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Writes ``model`` with a dynamic batch axis, as torch's exporter makes it by default."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    program = torch.onnx.export(
        model, (example,), dynamo=True, opset_version=OPSET, dynamic_shapes={"image": {0: batch}}, verbose=False, **names
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    save_without_paths(program.model, path)


def export_with_tracing(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Writes ``model`` through torch's older exporter, with batch normalization left as nodes of its own."""
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    save_without_paths(ir.load(path), path)


def save_without_paths(model: ir.Model, path: Path) -> None:
    """Saves ``model`` with its weights inside, less the exporter's notes about the Python code it came from."""
    for graph in model.graphs():
        for node in graph:
            _drop_notes(node.metadata_props)
            node.doc_string = None
            for value in node.outputs:
                _drop_notes(value.metadata_props)
        for value in (*graph.inputs, *graph.initializers.values()):
            _drop_notes(value.metadata_props)
    ir.save(model, path)


def _drop_notes(metadata: dict[str, str]) -> None:
    for key in [key for key in metadata if key.startswith(EXPORTER_METADATA)]:
        del metadata[key]


def main() -> None:
    """Trains, exports and writes the samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: this one)")
    out: Path = parser.parse_args().out
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # sums in another order on another number of threads would give other weights
    images, labels = load_data()
    split = len(images) - EVALUATION_ITEMS
    train_set = torch.from_numpy(images[:split]), torch.from_numpy(labels[:split])
    test_set = torch.from_numpy(images[split:]), torch.from_numpy(labels[split:])
    np.savez_compressed(out / "calib.npz", image=images[:CALIBRATION_ITEMS])
    np.savez_compressed(out / "eval.npz", image=images[split:], labels=labels[split:])
    conv, attention = ConvNet(), AttentionNet()
    for name, model in (("conv", conv), ("attention", attention)):
        train(model, *train_set)
        export(model, test_set[0][:2], out / f"{name}.onnx")
        print(f"{name}: {accuracy(model, *test_set):.4f} of {EVALUATION_ITEMS} held-out digits right")  # noqa: T201
    export_with_tracing(conv, test_set[0][:2], out / "conv_torchscript.onnx")


if __name__ == "__main__":
    main()
