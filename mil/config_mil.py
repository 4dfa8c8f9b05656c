"""The sections of the configuration about slides: aggregators, votes, and the choice of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from mil.config_data import Section

__all__ = ["Aggregator", "Candidate", "Choice", "Mil", "Select"]


class Choice(Section):
    """A component by name, with its arguments."""

    name: str
    """Name in the registry."""
    args: Mapping[str, Any] = Field(default_factory=dict)
    """Its arguments."""


class Aggregator(Choice):
    """A slide aggregator by name, with its arguments."""

    instance_loss: Mapping[str, Any] | None = Field(default_factory=dict)
    """Arguments of the loss on tiles that belongs to the method; null trains without it."""


class Mil(Section):
    """Training of the slide aggregators."""

    aggregators: tuple[Aggregator, ...] = (
        Aggregator(name="mean"),
        Aggregator(name="max"),
        Aggregator(name="abmil"),
        Aggregator(name="gated_abmil"),
    )
    """What is trained."""
    votes: tuple[Choice, ...] = ()
    """Votes without training beside ``vote`` and ``mean_probability``, which are always reported:
    ``weighted_vote``, ``quality_vote``, ``top_k_mean``, ``max_probability``, ``noisy_or``. One of
    the two named here gets its arguments."""
    bags: Literal["slide", "patient"] = "slide"
    """What is one bag: a slide, or all slides of a patient."""
    epochs: PositiveInt = 100
    """Passes over the training bags."""
    batch_tiles: PositiveInt = 4096
    """Tile budget of a packed batch; a larger bag streams in chunks, with the same result."""
    max_tiles: PositiveInt | None = None
    """Tiles of a training bag that are seen in an epoch, drawn anew each; None: all."""
    bag_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the tiles of a training bag that is left out in an epoch, drawn anew each."""
    balance: bool = False
    """Weigh each training bag by one over the number of bags of its class (mean weight 1)."""
    lr: float = Field(5e-4, gt=0)
    """Largest learning rate (AdamW, cosine)."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the epochs in which the learning rate climbs, before the cosine."""
    seeds: PositiveInt = 1
    """Models a fold that differ by seed alone; the prediction is the mean of theirs."""
    patience: PositiveInt | None = 20
    """Stop after so many epochs without a lower validation loss."""
    burn_in: float = Field(0.5, ge=0, lt=1)
    """Share of the epochs before one may be kept: few slides can favour an untrained epoch."""


class Candidate(Section):
    """A way from tiles to the slide that ``select`` tries; what it leaves out is as in ``mil``."""

    aggregator: Aggregator | None = None
    """A method that is trained,"""
    vote: Choice | None = None
    """or a vote, which is not."""
    epochs: PositiveInt | None = None
    """As ``mil.epochs``, and so on."""
    lr: float | None = Field(None, gt=0)
    """Largest learning rate."""
    weight_decay: float | None = Field(None, ge=0)
    """Weight decay."""
    warmup: float | None = Field(None, ge=0, lt=1)
    """Share of the epochs in which the learning rate climbs."""
    bag_dropout: float | None = Field(None, ge=0, lt=1)
    """Share of the tiles of a training bag that is left out in an epoch."""
    max_tiles: PositiveInt | None = None
    """Tiles of a training bag that are seen in an epoch."""
    balance: bool | None = None
    """Weigh each training bag by one over the number of bags of its class."""

    @model_validator(mode="after")
    def _one_method(self) -> Candidate:
        if (self.aggregator is None) == (self.vote is None):
            message = "a candidate is either an aggregator or a vote, as in {vote: {name: vote}}"
            raise ValueError(message)
        if self.vote is not None and self.training:
            message = f"{next(iter(self.training))} has no effect on a vote: leave it out"
            raise ValueError(message)
        return self

    @property
    def training(self) -> dict[str, Any]:
        """The settings of ``mil`` that it changes."""
        return self.model_dump(mode="json", exclude={"aggregator", "vote"}, exclude_none=True)

    @property
    def method(self) -> Choice:
        """Its aggregator or its vote."""
        method = self.aggregator or self.vote
        assert method is not None  # the validator has seen to it
        return method

    @property
    def spec(self) -> dict[str, Any]:
        """What it says, as a config would."""
        kind = "vote" if self.aggregator is None else "aggregator"
        return {kind: self.method.model_dump(mode="json"), **self.training}

    @property
    def title(self) -> str:
        """What to call it: ``abmil(hidden=64), lr=0.001``."""
        args = dict(self.method.args)
        if self.aggregator is not None and self.aggregator.instance_loss != {}:
            args["instance_loss"] = self.aggregator.instance_loss
        given = ", ".join(f"{name}={value}" for name, value in args.items())
        name = f"{self.method.name}({given})" if given else self.method.name
        return ", ".join([name, *(f"{key}={value}" for key, value in self.training.items())])

    def within(self, mil: Mil) -> Mil:
        """The section with this aggregator alone, trained as it says."""
        alone = {"aggregators": () if self.aggregator is None else (self.aggregator,)}
        return mil.model_copy(update={**alone, **self.training})


class Select(Section):
    """The choice of a method within each fold, by nested cross-validation over ``split.inner``."""

    candidates: tuple[Candidate, ...] = Field(min_length=2)
    """What is compared. Of those that are as good as the best, the first wins: begin with the
    simplest."""
    criterion: Literal["log_loss", "balanced_accuracy", "auroc"] = "log_loss"
    """What is compared, on slides that are held out inside. ``log_loss`` ends a vote that gives
    the right class nothing; ``balanced_accuracy`` looks at classes alone."""
