"""The models of a fold: built from the config, loaded from a run, and what they say of bags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mil.aggregators import AGGREGATORS, Aggregator, Output
from mil.aggregators.voting import VOTES, Votes
from mil.checkpoint import load_weights
from mil.config import Choice, Config
from mil.data.store import Features
from mil.encoders import TileEncoder, create
from mil.encoders.given import Given
from mil.encoders.weights import origin_digest
from mil.selection import SELECTED, chosen
from splits.artifacts import digest, file_digest, read_json
from splits.errors import InputError

__all__ = [
    "Models",
    "Said",
    "aggregator_folder",
    "ensemble",
    "folder_of",
    "load_aggregator",
    "log_probabilities",
    "network_digest",
    "new_aggregator",
    "new_encoder",
    "outputs",
    "said_together",
    "say",
    "shuffled_home",
    "voted",
    "votes_of",
    "weights_digests",
]

_ALWAYS: Final = ("vote", "mean_probability")
_BLOCK: Final = 2**14  # tiles that the tile classifier reads at once
Matrix = npt.NDArray[np.float64]
Rows = TypeVar("Rows", Tensor, Features)


class Said(NamedTuple):
    """What a method says of packed bags.

    Attributes:
        votes: Class and probabilities of each bag.
        attention: ``(n_tiles,)``; None where the method weighs no tiles.
        class_attention: ``(n_tiles, n_classes)``; None where all classes share one.
        contributions: ``(n_tiles, n_classes)``, to the logits; None where they are no sum.
    """

    votes: Votes
    attention: Matrix | None = None
    class_attention: Matrix | None = None
    contributions: Matrix | None = None


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


def network_digest(config: Config) -> str:
    """Of the network and its published weights, which count by content, wherever they lie."""
    named = config.encoder.model_dump(mode="json", exclude={"checkpoint"})
    return digest([named, origin_digest(config.encoder.name, config.encoder.checkpoint)])


def new_aggregator(config: Config, choice: Choice, dim: int, n_classes: int) -> Aggregator:
    """An aggregator of a config; bags beyond ``mil.batch_tiles`` stream."""
    model = AGGREGATORS.create(choice.name, dim=dim, n_classes=n_classes, **choice.args)
    model.budget = config.mil.batch_tiles
    return model


def load_aggregator(
    folder: Path, config: Config, choice: Choice, dim: int, n_classes: int
) -> Aggregator:
    """A trained aggregator in eval mode.

    Raises:
        InputError: It was not trained, or its weights do not fit the config.
    """
    model = new_aggregator(config, choice, dim, n_classes)
    load_weights(model, _weights(folder))
    return model.eval()


def outputs(model: Aggregator, x: Tensor, offsets: Tensor, positions: Tensor | None) -> Output:
    """Call an aggregator, with positions where it has a use for them."""
    said: Output = model(x, offsets, positions) if model.takes_positions else model(x, offsets)
    return said


def ensemble(members: Sequence[Said]) -> Said:
    """The mean of what several models say of the same bags; the highest mean probability wins.

    The mean of weights that sum to 1 does so, too; that of contributions adds up to mean logits.
    """
    if len(members) == 1:
        return members[0]
    share = np.mean([member.votes.probabilities for member in members], axis=0)
    votes = Votes(share.argmax(1), share, members[0].votes.all_counted)
    # Folds may have selected methods of which only some weigh tiles.
    columns = zip(*(member[1:] for member in members), strict=True)
    return Said(votes, *(_mean(column) for column in columns))


def _mean(column: Sequence[Matrix | None]) -> Matrix | None:
    known = [member for member in column if member is not None]
    return np.mean(known, axis=0) if len(known) == len(column) else None


def votes_of(asked: Sequence[Choice]) -> dict[str, Choice]:
    """Votes by name: those that are always reported, and those that are asked for."""
    votes = {name: Choice(name=name) for name in _ALWAYS}
    return votes | {choice.name: choice for choice in asked}


def voted(vote: Choice, probabilities: Matrix, offsets: Tensor, quality: Matrix | None) -> Said:
    """What a vote says of packed tiles with these class probabilities ``(n_tiles, n_classes)``."""
    given = {"quality": quality} if vote.name == "quality_vote" else {}
    cut = {"probabilities": probabilities, "offsets": offsets.numpy()}
    return Said(VOTES.create(vote.name, **cut, **given, **vote.args))


def said_together(
    models: Sequence[Aggregator], x: Tensor, offsets: Tensor, positions: Tensor | None
) -> Said:
    """What models that differ by seed say of packed bags: the mean of theirs."""
    return ensemble([say(model, x, offsets, positions) for model in models])


def log_probabilities(encoder: TileEncoder, features: Features) -> npt.NDArray[np.float32]:
    """What the tile classifier says of embeddings ``(n, dim)``, ``(n, n_classes)``."""
    with torch.inference_mode():
        head = encoder.head.cpu()
        blocks = [
            F.log_softmax(head(torch.from_numpy(np.array(block, dtype=np.float32))), dim=1)
            for block in _blocks(features)
        ]
        said: npt.NDArray[np.float32] = torch.cat(blocks).numpy()
    return said


def _blocks(rows: Rows) -> list[Rows]:
    """Views of consecutive rows: a bag on disk is never copied to float32 as a whole."""
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


@dataclass(frozen=True)
class Models:
    """A fold's trained encoder and aggregators, in eval mode.

    Attributes:
        encoder: With its tile classifier.
        aggregators: By name, a model a seed.
        crossfit: Aggregators see the tile classifier's log probabilities, not embeddings.
        votes: Rules without training, by the name of their method.
    """

    encoder: TileEncoder
    aggregators: dict[str, list[Aggregator]]
    crossfit: bool
    votes: dict[str, Choice]

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
        dim, n_classes = (len(classes) if crossfit else encoder.dim), len(classes)
        choices: dict[str, Choice] = {choice.name: choice for choice in config.mil.aggregators}
        votes = votes_of(config.mil.votes)
        if config.select is not None:
            candidate = chosen(run, fold)
            kind = votes if candidate.aggregator is None else choices
            kind[SELECTED] = candidate.method
        aggregators: dict[str, list[Aggregator]] = {}
        for method, choice in choices.items():
            for number in range(config.mil.seeds):
                folder = aggregator_folder(run, method, fold, number)
                model = load_aggregator(folder, config, choice, dim, n_classes)
                aggregators.setdefault(method, []).append(model)
        return cls(encoder.eval(), aggregators, crossfit, votes)

    @property
    def take_positions(self) -> bool:
        """Whether one of the aggregators has a use for positions."""
        return any(model.takes_positions for same in self.aggregators.values() for model in same)

    def tiles(self, x: Tensor) -> Votes:
        """Class and probabilities of each tile from embeddings ``(n_tiles, dim)``."""
        encoder = self.encoder.cpu()
        with torch.inference_mode():
            said = [encoder.classify(block).double() for block in _blocks(x)]
            probabilities = torch.cat(said).numpy()
        return Votes(probabilities.argmax(1), probabilities)

    def slides(
        self,
        x: Tensor,
        offsets: Tensor,
        *,
        positions: Tensor | None = None,
        quality: Matrix | None = None,
    ) -> dict[str, Said]:
        """What every method says of packed bags.

        Args:
            x: Embeddings, ``(n_tiles, dim)``.
            offsets: ``(n_bags + 1,)``.
            positions: ``(n_tiles, 2)`` int64, where they are known.
            quality: Of each tile, ``(n_tiles,)``, for ``quality_vote``.
        """
        said = self.untrained(self.tiles(x).probabilities, offsets, quality)
        seen = self.seen(x)
        for method in self.aggregators:
            said[method] = ensemble(self.members(method, seen, offsets, positions))
        return said

    def untrained(
        self, probabilities: Matrix, offsets: Tensor, quality: Matrix | None = None
    ) -> dict[str, Said]:
        """What every vote says of packed tiles with these class probabilities."""
        said: dict[str, Said] = {}
        for method, vote in self.votes.items():
            said[method] = voted(vote, probabilities, offsets, quality)
        return said

    def seen(self, x: Tensor) -> Tensor:
        """What the aggregators read of embeddings: these, or the classifier's log probabilities."""
        return torch.from_numpy(log_probabilities(self.encoder, x.numpy())) if self.crossfit else x

    def members(
        self, method: str, seen: Tensor, offsets: Tensor, positions: Tensor | None = None
    ) -> list[Said]:
        """What each model of an aggregator says of packed bags, one a seed."""
        return [say(model, seen, offsets, positions) for model in self.aggregators[method]]


def say(model: Aggregator, seen: Tensor, offsets: Tensor, positions: Tensor | None = None) -> Said:
    """What one model in eval mode says of packed bags."""
    with torch.inference_mode():
        return _said(outputs(model, seen, offsets, positions))


def _said(output: Output) -> Said:
    share = F.softmax(output.logits.double(), dim=1).numpy()
    scores = (output.attention, output.class_attention, output.contributions)
    votes = Votes(share.argmax(1), share)
    return Said(votes, *(None if of is None else of.double().numpy() for of in scores))


def weights_digests(run: Path, config: Config, folds: Sequence[int]) -> list[str]:
    """SHA-256 of every weights file that predictions depend on, and digests of selected votes.

    Raises:
        InputError: One of them was not trained to the end.
    """
    files = [_encoder_file(run, fold) for fold in folds]
    methods = [(choice.name, fold) for choice in config.mil.aggregators for fold in folds]
    votes = []
    for fold in folds if config.select is not None else ():
        candidate = chosen(run, fold)
        if candidate.aggregator is None:
            votes.append(digest([fold, candidate.method.model_dump(mode="json")]))
        else:
            methods.append((SELECTED, fold))
    files += [
        _weights(aggregator_folder(run, method, fold, number))
        for method, fold in methods
        for number in range(config.mil.seeds)
    ]
    for file in files:
        if not (file.parent / "card.json").exists():
            message = f"{file.parent} is not trained yet: run `slidewise train {run}` first"
            raise InputError(message)
    return [*map(file_digest, files), *votes]


def shuffled_home(run: Path, name: str) -> Path:
    """Where models lie that were trained on shuffled labels (``evidence.shuffled_control``)."""
    return run / "aggregators" / name / "shuffled"


def aggregator_folder(run: Path, method: str, fold: int, number: int) -> Path:
    """Where a model lies; number tells seeds of one fold apart."""
    return folder_of(run / "aggregators" / method, str(fold), number)


def folder_of(home: Path, fold: str, number: int) -> Path:
    """The folder of a model among those of its method."""
    return home / (f"fold{fold}-seed{number}" if number else f"fold{fold}")


def _encoder_file(run: Path, fold: int) -> Path:
    return _weights(run / "encoder" / f"fold{fold}")


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"
