"""The sections of the configuration about the cohort: tiles or features, identity and split."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from mil.phantom import Phantom

__all__ = ["Data", "Identity", "Section", "Split", "changed"]


class Section(BaseModel):
    """A frozen model without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class Data(Section):
    """Where the tiles are and what their label is."""

    root: Path | None = None
    """Folder of images. Leave empty with ``phantom``."""
    phantom: Phantom | None = None
    """Generate the phantom cohort into the run folder and use it."""
    features: Path | None = None
    """Start from tile features of another tool, without pixels: a folder with a file a slide, or
    a set of bags in one ``.npz``. Its encoder is taken to have seen none of the slides."""
    labels: Path | None = None
    """With ``features``: the table of slides and labels, with patients and sites where it has them.
    None takes the labels that the files bring."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Columns of ``labels`` that are not recognised: ``{slide_id: Biopsy, label: Diagnose}``."""
    label: str = "folder"
    """``folder``, ``none`` (the manifest brings labels), or a regex with ``(?P<label>...)``."""
    classes: tuple[str, ...] | None = None
    """Keep only these labels, in this order; other tiles go to ``skipped.csv``."""
    tile_px: PositiveInt | None = None
    """Cut every image into squares of this size; coordinates are kept."""
    mixed_sizes: Literal["skip", "resize"] = "skip"
    """What happens to tiles that differ from the most frequent size."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if [self.root, self.phantom, self.features].count(None) != 2:
            message = (
                "give either data.root (a folder of images), data.features (feature files) or "
                "data.phantom, one of the three"
            )
            raise ValueError(message)
        if self.features is None and (self.labels is not None or self.columns):
            message = "data.labels and data.columns go with data.features; images have a manifest"
            raise ValueError(message)
        if self.columns and self.labels is None:
            message = "data.columns are those of data.labels, and none is given"
            raise ValueError(message)
        of_images = {"label", "tile_px", "mixed_sizes"}
        if self.features is not None and (idle := changed(self, of_images)):
            message = f"data.{idle} is about images and has no effect with data.features"
            raise ValueError(message)
        return self


class Identity(Section):
    """How tiles get their slide, patient and site."""

    rule: str = "auto"
    """``auto``, the name of a grammar, or a regex with ``(?P<slide>...)``."""
    manifest: Path | None = None
    """Table with a path, slide or patient and any of site, label, tile_label, x_px, y_px, mpp."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Columns of the manifest that are not recognised: ``{slide_id: Biopsy, path: Bild}``."""
    patients: Path | None = None
    """Table of patients joined to the manifest (STAMP's clinical table beside its slide table)."""
    sites: Path | None = None
    """Table of site code and institution: sites of one institution become one."""
    content: bool = True
    """Look for copies, overlaps and seams in the pixels."""
    embedding: Path | Literal["encoder"] | None = None
    """More soft evidence where ids are missing: a file of features of all tiles (npz, parquet or
    npy), or ``encoder``: the published weights of ``encoder`` on the RGB pixels."""

    @model_validator(mode="after")
    def _embedding_needs_content(self) -> Identity:
        if self.embedding is not None and not self.content:
            message = "identity.embedding is soft evidence beside pixels: set identity.content=true"
            raise ValueError(message)
        return self


class Split(Section):
    """How groups are dealt to folds."""

    method: Literal["kfold", "holdout", "leave-one-site-out"] = "kfold"
    """``kfold``: every slide is tested once. ``holdout``: one fold by ``ratios``.
    ``leave-one-site-out``: one fold a site; needs ``unit=site``."""
    folds: int = Field(5, ge=2)
    """Folds of ``kfold``."""
    repeats: PositiveInt = 1
    """Times that ``kfold`` is dealt anew. A run trains and tests one repeat: for more, take
    ``slidewise split`` alone."""
    inner: int | None = Field(None, ge=2)
    """Folds within each fold of ``kfold``, for ``select`` or a loop of your own:
    ``split_inner.csv``."""
    val_share: float = Field(0.2, gt=0, lt=1)
    """Share of a fold's non-test slides that validate."""
    ratios: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Train, val and test shares of ``holdout``."""
    unit: Literal["patient", "slide", "site"] = "patient"
    """What is never cut; with ``site``, k-fold is site-preserved."""
    balance: tuple[Literal["label", "tissue", "site", "tiles", "stain"], ...] = (
        "label",
        "tiles",
    )
    """What is balanced over folds and parts."""
    tissue_types: int = Field(6, ge=2, le=20)
    """Types of tissue that ``tissue`` balances, beside background."""
    label_policy: Literal["slide", "majority", "max", "reject"] = "slide"
    """What counts where the slides of a patient differ in label: each its own, the commonest for
    all, the highest for all, or nothing until the table is corrected."""
    label_order: tuple[str, ...] | None = None
    """Classes from lowest to highest, for ``max``, ties of ``majority`` (numbers need none), and a
    quadratic kappa in the evaluation."""
    seed: int = 0
    """Seed of the search."""

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        if self.method == "leave-one-site-out" and self.unit != "site":
            message = f"split.method=leave-one-site-out needs split.unit=site, not {self.unit}"
            raise ValueError(message)
        if self.method != "kfold" and (self.repeats > 1 or self.inner is not None):
            message = f"split.repeats and split.inner belong to kfold, not to {self.method}"
            raise ValueError(message)
        return self


def changed(
    section: Section, names: Collection[str] | None = None, kept: Collection[str] = ()
) -> str | None:
    """The first of these fields (default: all but ``kept``) that is not at its default."""
    fields = type(section).model_fields
    for name in fields if names is None else sorted(names):
        if name not in kept and getattr(section, name) != fields[name].get_default(
            call_default_factory=True
        ):
            return name
    return None
