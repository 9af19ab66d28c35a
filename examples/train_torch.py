"""Train a small classifier with PyTorch, go on after a crash, log it with Headrace.

Without PyTorch the same model is trained by numpy, so that the script runs
anywhere. With `--checkpoint FILE` it keeps one and, started again, goes on from
there as the next attempt of the same run.

    python examples/train_torch.py --steps 300 --checkpoint moons.json
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headrace
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def moons(count: int = 1_000) -> tuple[Array, Array]:
    """Two interleaved half circles with noise: points (n, 2) and labels (n,)."""
    random = np.random.default_rng(0)
    angle, label = random.uniform(0, np.pi, count), random.integers(0, 2, count)
    x = np.where(label == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(label == 0, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], axis=1) + random.normal(0, 0.1, (count, 2)), label.astype(float)


def initial_weights(hidden: int) -> list[Array]:
    """Of a network 2 → hidden → 1."""
    random = np.random.default_rng(1)
    return [random.normal(0, 1, (2, hidden)), np.zeros(hidden), random.normal(0, 0.3, hidden)]


def train_with_torch(
    torch: Any, weights: list[Array], rate: float
) -> Iterator[tuple[dict[str, Any], list[Array]]]:
    """Yield after each step the metrics, tensors as they are, and the weights."""
    points, labels = (torch.tensor(array) for array in moons())
    tensors = [torch.tensor(array, requires_grad=True) for array in weights]
    optimiser = torch.optim.SGD(tensors, lr=rate)
    while True:
        logits = torch.tanh(points @ tensors[0] + tensors[1]) @ tensors[2]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        accuracy = ((logits > 0) == (labels > 0.5)).double().mean()
        yield (
            {"loss": loss.detach(), "accuracy": accuracy},
            [tensor.detach().numpy() for tensor in tensors],
        )


def train_with_numpy(
    weights: list[Array], rate: float
) -> Iterator[tuple[dict[str, Any], list[Array]]]:
    """The same by hand."""
    points, labels = moons()
    first, bias, second = weights
    while True:
        inner = np.tanh(points @ first + bias)
        logits = inner @ second
        loss = np.mean(np.logaddexp(0, logits) - labels * logits)
        error = (1 / (1 + np.exp(-logits)) - labels) / len(labels)
        slope = np.outer(error, second) * (1 - inner**2)
        second = second - rate * inner.T @ error
        first, bias = first - rate * points.T @ slope, bias - rate * slope.sum(axis=0)
        accuracy = np.mean((logits > 0) == (labels > 0.5))
        yield {"loss": loss, "accuracy": accuracy}, [first, bias, second]


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()

    saved: dict[str, Any] = {}
    if options.checkpoint is not None and options.checkpoint.exists():
        saved = json.loads(options.checkpoint.read_text())
    weights = [np.array(array) for array in saved.get("weights", [])]
    weights = weights or initial_weights(options.hidden)
    try:
        import torch  # noqa: PLC0415 - it may not be installed

        library, training = "torch", train_with_torch(torch, weights, options.rate)
    except ImportError:
        print("PyTorch is not installed (pip install torch); numpy trains the same model")
        library, training = "numpy", train_with_numpy(weights, options.rate)

    with headrace.init(
        experiment="examples/train/moons",
        config={"hidden": options.hidden, "rate": options.rate},
        tags={"library": library},
        resume=saved.get("run"),
    ) as run:
        begin = saved.get("run", {}).get("resume_step", 0)
        for step in range(begin, begin + options.steps):
            metrics, weights = next(training)
            run.log(metrics, step)
        run.summary["accuracy"] = metrics["accuracy"]
        if options.checkpoint is not None:
            lists = [array.tolist() for array in weights]
            content = {"run": run.resume_point(step + 1), "weights": lists}
            options.checkpoint.write_text(json.dumps(content))
    print(f"run {run.id}: accuracy {float(metrics['accuracy']):.3f} after {step + 1} steps")


if __name__ == "__main__":
    main()
