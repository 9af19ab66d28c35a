"""Train a small classifier on scikit-learn's digits and log it with Headrace.

The script that a user would write: nothing in it knows about the demo beside
it. It takes its hyper-parameters as arguments, logs every step, keeps a
checkpoint, and when it is started again after a crash it goes on from there as
the next attempt of the same run. Started as several ranks (RANK, WORLD_SIZE
and one HEADRACE_RUN_ID, as torchrun sets them) each rank trains on its share
of the data, and the ranks average their weights after every epoch.

    python -m examples.train_digits --hidden 64 --learning-rate 0.1
"""

import argparse
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import headrace
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]

CLASSES: Final = 10
PIXELS: Final = 64
TRAINING_SAMPLES: Final = 1_437
"""Four fifths of the 1,797 images; the rest tests."""

AVERAGING_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images of digits, pixels scaled to [0, 1]: shapes (n, 64) and (n,)."""

    train_images: Array
    train_labels: NDArray[np.int64]
    test_images: Array
    test_labels: NDArray[np.int64]


def load_digits(path: Path | None) -> Digits:
    """Load the data set from an .npz of `images` and `labels`, or from scikit-learn.

    Importing scikit-learn takes a second of CPU; sixty jobs on two cores notice.
    """
    if path is None:
        from sklearn.datasets import load_digits as load  # noqa: PLC0415

        images, labels = load(return_X_y=True)
    else:
        with np.load(path) as archive:
            images, labels = archive["images"], archive["labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order] / 16.0, labels[order].astype(np.int64)
    return Digits(
        train_images=images[:TRAINING_SAMPLES],
        train_labels=labels[:TRAINING_SAMPLES],
        test_images=images[TRAINING_SAMPLES:],
        test_labels=labels[TRAINING_SAMPLES:],
    )


def fresh_weights(hidden: int, seed: int) -> Weights:
    """Return the parameters of a 64-hidden-10 network."""
    generator = np.random.default_rng(seed)
    return {
        "w1": generator.standard_normal((PIXELS, hidden)) * np.sqrt(2 / PIXELS),
        "b1": np.zeros(hidden),
        "w2": generator.standard_normal((hidden, CLASSES)) * np.sqrt(2 / hidden),
        "b2": np.zeros(CLASSES),
    }


def forward(weights: Weights, images: Array) -> tuple[Array, Array]:
    """Return the hidden activations and the class probabilities, one row an image."""
    activations = np.maximum(images @ weights["w1"] + weights["b1"], 0)
    logits = activations @ weights["w2"] + weights["b2"]
    logits -= logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits)
    return activations, exponentials / exponentials.sum(axis=1, keepdims=True)


def loss_and_accuracy(probabilities: Array, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean cross entropy in nats, and the share of right answers."""
    chosen = probabilities[np.arange(len(labels)), labels]
    right = probabilities.argmax(axis=1) == labels
    return float(-np.log(chosen + 1e-12).mean()), float(right.mean())


def gradients(
    weights: Weights, images: Array, labels: NDArray[np.int64], weight_decay: float
) -> tuple[Weights, float, float]:
    """Return the gradients with the loss and accuracy they were computed at."""
    activations, probabilities = forward(weights, images)
    loss, accuracy = loss_and_accuracy(probabilities, labels)
    error = probabilities.copy()
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    hidden_error = (error @ weights["w2"].T) * (activations > 0)
    found = {
        "w1": images.T @ hidden_error + weight_decay * weights["w1"],
        "b1": hidden_error.sum(axis=0),
        "w2": activations.T @ error + weight_decay * weights["w2"],
        "b2": error.sum(axis=0),
    }
    return found, loss, accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a restart needs: where it was, as which attempt of which run."""

    run_id: str
    attempt: int
    epoch: int
    step: int
    weights: Weights

    def save(self, path: Path) -> None:
        """Replace the file at once, so that a kill leaves the old one or the new one."""
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            facts = np.array([self.attempt, self.epoch, self.step])
            arrays: dict[str, Any] = {**self.weights, "facts": facts, "run_id": self.run_id}
            np.savez(file, **arrays)
        partial.replace(path)

    def next_attempt(self) -> "Checkpoint":
        """Return where a restart begins."""
        return replace(self, attempt=self.attempt + 1)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read what `save` wrote."""
        with np.load(path) as archive:
            attempt, epoch, step = archive["facts"].tolist()
            weights = {name: archive[name] for name in ("w1", "b1", "w2", "b2")}
            run_id = str(archive["run_id"])
        return cls(run_id=run_id, attempt=attempt, epoch=epoch, step=step, weights=weights)


def average_over_ranks(
    weights: Weights, directory: Path, *, epoch: int, rank: int, world_size: int
) -> Weights:
    """Return the mean of all ranks' weights, exchanged as files in a shared directory.

    Raises:
        TimeoutError: a rank did not deliver its weights within a minute.
    """
    mine = directory / f"epoch-{epoch}-rank-{rank}.npz"
    partial = mine.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **weights)  # type: ignore[arg-type]
    partial.replace(mine)
    total = {name: np.zeros_like(array) for name, array in weights.items()}
    deadline = time.monotonic() + AVERAGING_TIMEOUT_S
    for other in range(world_size):
        path = directory / f"epoch-{epoch}-rank-{other}.npz"
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {other} did not finish epoch {epoch}")
            time.sleep(0.005)
        with np.load(path) as archive:
            for name in total:
                total[name] += archive[name] / world_size
    return total


class Ledger:
    """Counts, in a file, the points given to `log`: kept for an audit, not for Headrace.

    Two little-endian 64-bit numbers: points about to be logged, points whose
    log call returned. They differ by one call at most, whenever we are killed.
    """

    def __init__(self, path: Path, run: headrace.Run) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._run = run
        self._points = 0

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        """Log, counted before and after."""
        self._points += len(metrics)
        count = struct.pack("<q", self._points)
        os.pwrite(self._file, count, 0)
        self._run.log(metrics, step=step)
        os.pwrite(self._file, count, 8)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--hidden", type=int, default=64, help="hidden units")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32, help="samples per step")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help=".npz with the digits; default: scikit-learn's")
    parser.add_argument("--directory", type=Path, default=Path(), help="where checkpoints go")
    parser.add_argument("--name", default="digits", help="the run's name")
    parser.add_argument("--ledger", type=Path, help="count what is logged in this file")
    return parser.parse_args()


def train_epoch(
    weights: Weights,
    velocity: Weights,
    images: Array,
    labels: NDArray[np.int64],
    options: argparse.Namespace,
) -> Iterator[dict[str, float]]:
    """Go once over the samples in the order given, yielding the metrics of each step.

    Updates `weights` and `velocity` in place.
    """
    for start in range(0, len(labels), options.batch_size):
        batch = slice(start, start + options.batch_size)
        found, loss, accuracy = gradients(
            weights, images[batch], labels[batch], options.weight_decay
        )
        for name, gradient in found.items():
            velocity[name] = options.momentum * velocity[name] - options.learning_rate * gradient
            weights[name] = weights[name] + velocity[name]
        yield {
            "train/loss": loss,
            "train/accuracy": accuracy,
            "train/gradient_norm": float(np.sqrt(sum((g**2).sum() for g in found.values()))),
            "train/weight_norm": float(np.sqrt(sum((w**2).sum() for w in weights.values()))),
        }


def main() -> None:
    """Train, from the beginning or from the checkpoint."""
    options = arguments()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    digits = load_digits(options.data)
    images, labels = digits.train_images[rank::world_size], digits.train_labels[rank::world_size]

    options.directory.mkdir(parents=True, exist_ok=True)
    path = options.directory / f"checkpoint-rank-{rank}.npz"
    if path.exists():
        at = Checkpoint.load(path).next_attempt()
        run = headrace.init(
            experiment="digits",
            name=options.name,
            run_id=at.run_id,
            attempt=at.attempt,
            resume_step=at.step,
        )
    else:
        run = headrace.init(experiment="digits", name=options.name)
        weights = fresh_weights(options.hidden, options.seed)
        at = Checkpoint(run_id=run.id, attempt=1, epoch=0, step=0, weights=weights)

    log = run.log if options.ledger is None else Ledger(options.ledger, run).log
    weights, step = at.weights, at.step
    velocity = {name: np.zeros_like(array) for name, array in weights.items()}
    generator = np.random.default_rng((options.seed, rank, at.attempt))
    with run:
        for epoch in range(at.epoch, options.epochs):
            replace(at, epoch=epoch, step=step, weights=weights).save(path)
            order = generator.permutation(len(labels))
            metrics: dict[str, float] = {}
            for metrics in train_epoch(weights, velocity, images[order], labels[order], options):
                log({**metrics, "epoch": epoch}, step=step)
                step += 1
            if world_size > 1:
                weights = average_over_ranks(
                    weights, options.directory, epoch=epoch, rank=rank, world_size=world_size
                )
            _, probabilities = forward(weights, digits.test_images)
            loss, accuracy = loss_and_accuracy(probabilities, digits.test_labels)
            log({"test/loss": loss, "test/accuracy": accuracy}, step=step - 1)


if __name__ == "__main__":
    main()
