"""The models of a fold: built from the config, loaded from a run, and what they say of bags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mil.aggregators import AGGREGATORS, Aggregator
from mil.aggregators.voting import Votes, mean_probability, plurality_vote
from mil.checkpoint import load_weights
from mil.config import Choice, Config
from mil.data.store import Features
from mil.encoders import TileEncoder, create
from mil.encoders.given import Given
from splits.artifacts import file_digest, read_json
from splits.errors import InputError

__all__ = ["Models", "log_probabilities", "new_aggregator", "new_encoder", "weights_digests"]

_VOTES = {"vote": plurality_vote, "mean_probability": mean_probability}
Matrix = npt.NDArray[np.float64]


def new_encoder(
    config: Config, classes: Sequence[str], *, load_weights: bool, dim: int = 0
) -> TileEncoder:
    """The encoder of a config: with published weights, or empty to be filled from a run.

    Args:
        config: Of the run.
        classes: Of the tile classifier.
        load_weights: Load the published weights.
        dim: Of features that come from files, where there is no network (``data.features``).
    """
    settings = config.encoder
    # Random weights follow from the seed, the same in every fold.
    torch.manual_seed(config.seed)
    if config.data.features is not None:
        return Given(dim, len(classes))
    return create(
        settings.name,
        channels=settings.channels,
        n_classes=len(classes),
        image_px=settings.image_px,
        scales=settings.context,
        pretrained=settings.pretrained,
        checkpoint=settings.checkpoint,
        load_weights=load_weights,
        frozen=settings.frozen,
        tune=settings.tune,
        lora_rank=settings.lora_rank,
        args=settings.args,
    )


def new_aggregator(choice: Choice, dim: int, n_classes: int) -> Aggregator:
    """The aggregator of a config."""
    return AGGREGATORS.create(choice.name, dim=dim, n_classes=n_classes, **choice.args)


def log_probabilities(encoder: TileEncoder, features: Features) -> npt.NDArray[np.float32]:
    """What the tile classifier says of embeddings ``(n, dim)``, ``(n, n_classes)``."""
    with torch.inference_mode():
        x = torch.from_numpy(np.array(features, dtype=np.float32))
        head = encoder.head.cpu()
        said: npt.NDArray[np.float32] = F.log_softmax(head(x), dim=1).numpy()
    return said


@dataclass(frozen=True)
class Models:
    """A fold's trained encoder and aggregators, in eval mode.

    Attributes:
        encoder: With its tile classifier.
        aggregators: By name.
        crossfit: Aggregators see the tile classifier's log probabilities, not embeddings.
    """

    encoder: TileEncoder
    aggregators: dict[str, Aggregator]
    crossfit: bool

    @classmethod
    def load(cls, run: Path, config: Config, fold: int, classes: Sequence[str]) -> Models:
        """Read the weights of a fold.

        Raises:
            InputError: The fold was not trained, or its weights do not fit the config.
        """
        file = _encoder_file(run, fold)
        dim = read_json(file.with_name("card.json"))["dim"]
        encoder = new_encoder(config, classes, load_weights=False, dim=dim)
        load_weights(encoder, file)
        crossfit = config.train.crossfit is not None
        aggregators = {}
        for choice in config.mil.aggregators:
            model = new_aggregator(choice, len(classes) if crossfit else encoder.dim, len(classes))
            load_weights(model, _aggregator_file(run, choice.name, fold))
            aggregators[choice.name] = model.eval()
        return cls(encoder.eval(), aggregators, crossfit)

    def tiles(self, x: Tensor) -> Votes:
        """Class and probabilities of each tile from embeddings ``(n_tiles, dim)``."""
        with torch.inference_mode():
            probabilities = self.encoder.cpu().classify(x).double().numpy()
        return Votes(probabilities.argmax(1), probabilities)

    def slides(self, x: Tensor, offsets: Tensor) -> dict[str, tuple[Votes, Matrix | None]]:
        """What every method says of packed bags.

        Args:
            x: Embeddings, ``(n_tiles, dim)``.
            offsets: ``(n_bags + 1,)``.

        Returns:
            Method -> class and probabilities a bag, and attention ``(n_tiles,)`` where it weighs
            tiles.
        """
        probabilities = self.tiles(x).probabilities
        said: dict[str, tuple[Votes, Matrix | None]] = {
            method: (rule(probabilities, offsets.numpy()), None) for method, rule in _VOTES.items()
        }
        seen = torch.from_numpy(log_probabilities(self.encoder, x.numpy())) if self.crossfit else x
        with torch.inference_mode():
            for method, model in self.aggregators.items():
                output = model(seen, offsets)
                share = F.softmax(output.logits.double(), dim=1).numpy()
                attention = output.attention
                weights = None if attention is None else attention.double().numpy()
                said[method] = (Votes(share.argmax(1), share), weights)
        return said


def weights_digests(run: Path, config: Config, folds: Sequence[int]) -> list[str]:
    """SHA-256 of every weights file that predictions depend on.

    Raises:
        InputError: One of them was not trained to the end.
    """
    files = [_encoder_file(run, fold) for fold in folds]
    for choice in config.mil.aggregators:
        files += [_aggregator_file(run, choice.name, fold) for fold in folds]
    for file in files:
        if not (file.parent / "card.json").exists():
            message = f"{file.parent} is not trained yet: run `slidewise train {run}` first"
            raise InputError(message)
    return [file_digest(file) for file in files]


def _encoder_file(run: Path, fold: int) -> Path:
    return run / "encoder" / f"fold{fold}" / "model.safetensors"


def _aggregator_file(run: Path, name: str, fold: int) -> Path:
    return run / "aggregators" / name / f"fold{fold}" / "model.safetensors"
