"""The configuration: one frozen model a stage, unknown keys forbidden, defaults in code.

How it is read, overridden and written stands in :mod:`mil.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from mil.config_data import Data, Identity, Section, Split, changed
from mil.config_mil import Aggregator, Candidate, Choice, Mil, Select

__all__ = [
    "Aggregator",
    "Augment",
    "Candidate",
    "Choice",
    "Compute",
    "Config",
    "Data",
    "Encoder",
    "Evaluate",
    "Evidence",
    "Identity",
    "Mil",
    "Select",
    "Split",
    "Stain",
    "Train",
]

_LORA_RANK = 8


class Stain(Section):
    """How RGB becomes hematoxylin and eosin."""

    method: Literal["macenko", "vahadane", "ruifrok", "macenko_tile", "reinhard", "none"] = (
        "macenko"
    )
    """Hematoxylin and eosin by vectors a slide (``macenko``; ``vahadane``: sparse), by fixed ones
    (``ruifrok``), or by vectors a tile (``macenko_tile``, for comparison only). With
    ``encoder.channels=rgb``: ``reinhard`` brings slides to one colour, ``none`` does nothing."""


class Encoder(Section):
    """The tile encoder and what it sees."""

    name: str = "resnet18"
    """``resnet18``, ``vit_tiny``, ``vit_small``, ``vit_base``, a pathology foundation model
    (``uni``, ``uni2``, ``virchow``, ``virchow2``, ``prov_gigapath``, ``h_optimus_0``), any timm
    model name, ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``."""
    args: Mapping[str, Any] = Field(default_factory=dict)
    """Further arguments of the timm model."""
    channels: Literal["he", "h", "e", "rgb"] = "he"
    """What the first layer sees."""
    context: tuple[Annotated[int, Field(ge=1, le=16)], ...] = (1,)
    """Scales at which it sees the surroundings as further channels: ``[1, 4]`` adds the square of
    four times the tile's side, at a quarter of the resolution. 1, the tile itself, comes first."""
    resize_px: PositiveInt = 128
    """Tiles are decoded to this size once."""
    image_px: PositiveInt = 128
    """Size that the encoder sees: a random crop in training, the centre otherwise."""
    pretrained: bool = False
    """Load the published weights (needs the hub or its local cache, or the named folder)."""
    checkpoint: Path | None = None
    """Load weights of this model from a local file (safetensors, or a plain state dict)."""
    frozen: bool = False
    """Keep the weights; only a linear tile classifier is fitted on the embeddings."""
    tune: Literal["all", "last_block", "lora"] = "all"
    """What of published weights is trained: ``all``, the ``last_block`` and what follows it, or
    low-rank changes of every layer (``lora``)."""
    lora_rank: PositiveInt = _LORA_RANK
    """Rank of ``lora``: a layer of m x n weights learns rank * (m + n) numbers."""

    @model_validator(mode="after")
    def _consistent(self) -> Encoder:
        if self.image_px > self.resize_px:
            message = f"encoder.image_px={self.image_px} exceeds resize_px={self.resize_px}"
            raise ValueError(message)
        if self.context[:1] != (1,) or list(self.context) != sorted(set(self.context)):
            given = list(self.context)
            message = f"encoder.context={given}: 1 comes first, then larger scales, as in [1, 4]"
            raise ValueError(message)
        if self.frozen and not (self.pretrained or self.checkpoint):
            message = "encoder.frozen needs weights: set encoder.pretrained or encoder.checkpoint"
            raise ValueError(message)
        if self.tune != "all" and (self.frozen or not (self.pretrained or self.checkpoint)):
            message = (
                f"encoder.tune={self.tune} trains part of published weights: set "
                "encoder.pretrained or encoder.checkpoint, and encoder.frozen=false"
            )
            raise ValueError(message)
        if self.tune != "lora" and self.lora_rank != _LORA_RANK:
            message = f"encoder.lora_rank={self.lora_rank} needs encoder.tune=lora, not {self.tune}"
            raise ValueError(message)
        if self.pretrained and self.checkpoint:
            message = "encoder.pretrained and encoder.checkpoint exclude each other"
            raise ValueError(message)
        return self


class Augment(Section):
    """Random views of a training tile, each from a seed of its own."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the area that a random resized crop keeps. (1, 1): a window of ``image_px`` at the
    tile's own scale."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Aspect ratio of the crop."""
    horizontal_flip: bool = True
    """Mirror half of the tiles."""
    quarter_turns: bool = True
    """Turn by a random multiple of 90 degrees (tissue has no up)."""
    blur: float = Field(0.0, ge=0)
    """Largest standard deviation of a Gaussian blur, in pixels; 0 is off."""
    stain_jitter: float = Field(0.1, ge=0, le=1)
    """Largest relative change of each channel's concentration (of optical density for RGB)."""

    @model_validator(mode="after")
    def _ranges(self) -> Augment:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            message = (
                f"augment.crop_scale is low, high with 0 < low <= high <= 1, not {self.crop_scale}"
            )
            raise ValueError(message)
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            message = f"augment.crop_ratio is low, high with 0 < low <= high, not {self.crop_ratio}"
            raise ValueError(message)
        return self


class Train(Section):
    """Training of the tile encoder."""

    epochs: PositiveInt = 20
    """Passes over the training tiles."""
    batch_size: PositiveInt = 32
    """Tiles a step."""
    optimizer: Choice = Choice(name="adamw")
    """``adamw`` or ``sgd``."""
    lr: float = Field(5e-4, gt=0)
    """Largest learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay."""
    schedule: Choice = Choice(name="cosine")
    """``constant``, ``step``, ``cosine`` or ``onecycle``."""
    augment: Augment = Augment()
    """Random views."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the label that is spread over all classes (Szegedy et al. 2016)."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al. 2018); 0 is off."""
    crossfit: int | None = Field(None, ge=2)
    """Parts for cross-fitting: aggregators learn from tile probabilities of encoders that did not
    train on the slide, instead of embeddings. So many more encoders a fold are trained."""
    tensorboard: bool = False
    """Write ``log.csv`` as TensorBoard events, too (an extra package)."""
    mlflow: str | None = None
    """Where MLflow keeps its runs (an extra package): a folder, or the URI of a server or
    database. The finished run is entered there: settings, every ``log.csv``, scores, report."""
    patience: PositiveInt | None = None
    """Stop after so many epochs without a better one by validation."""
    burn_in: float = Field(0.5, ge=0, lt=1)
    """Share of the epochs before one may be kept: few slides can favour an untrained epoch."""


class Evaluate(Section):
    """Intervals and conformal sets. With ``split.label_order`` there is a quadratic kappa, too."""

    bootstrap: PositiveInt = 2000
    """Bootstrap draws over whole clusters."""
    cluster: Literal["patient", "site"] = "patient"
    """What is drawn: whole patients, or whole sites (every test slide needs one)."""
    interval: Literal["bca", "percentile"] = "bca"
    """``bca`` shifts the ends for skewness, ``percentile`` does not; both are widened for few and
    uneven clusters."""
    level: float = Field(0.9, gt=0, lt=1)
    """Share of slides whose conformal set shall hold the true class; validation needs
    ``1 / (1 - level) - 1`` patients a fold, 9 for 0.9, before a set may leave a class out."""


class Evidence(Section):
    """Taking tiles away from test slides: how many are needed, and whether attention names them."""

    max_slides: int = Field(200, ge=0)
    """Test bags that are looked at; of more, so many are drawn. 0: no tile is taken away."""
    repeats: PositiveInt = 5
    """Random orders in which the tiles of a slide are taken away."""
    shuffled_control: bool = False
    """Train every method that weighs tiles a second time, on shuffled labels of training slides:
    what attention looks like when there was nothing to learn."""

    @model_validator(mode="after")
    def _idle(self) -> Evidence:
        idle = changed(self, kept={"max_slides"})
        if self.max_slides == 0 and idle:
            message = f"evidence.{idle} has no effect with evidence.max_slides=0: leave it out"
            raise ValueError(message)
        return self


class Compute(Section):
    """Machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where models run."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the hardware has it, else float32."""
    threads: PositiveInt | None = None
    """CPU threads a process; None takes all cores."""
    devices: PositiveInt = 1
    """Processes on each machine that train the encoder together, one a device (or on CPU)."""
    nodes: PositiveInt = 1
    """Machines that train together."""
    encode_batch: PositiveInt = 64
    """Tiles that are embedded at once."""
    compile: bool = False
    """Compile a finished encoder before it reads tiles: worth its twenty seconds for very many
    tiles only. On a CPU it needs a C++ compiler, and says so where there is none."""
    cache: Literal["auto", "ram", "disk", "off"] = "auto"
    """Where decoded and stained tiles are kept: in memory (read from disk at the start), on disk,
    or nowhere (``off``: decoded anew whenever they are needed). ``auto``: in memory where they fill
    at most a quarter of what is free, else on disk, else nowhere."""
    cache_dir: Path | None = None
    """Folder of caches that runs share, each found by its content; None: in the run folder."""


class Config(Section):
    """One experiment."""

    data: Data
    """Tiles and labels."""
    identity: Identity = Identity()
    """Slide identity."""
    split: Split = Split()
    """Folds."""
    stain: Stain = Stain()
    """Stain separation."""
    encoder: Encoder = Encoder()
    """Tile encoder."""
    train: Train = Train()
    """Encoder training."""
    mil: Mil = Mil()
    """Aggregators and their training."""
    select: Select | None = None
    """Choose among candidates within each fold; the chosen are the method ``selected``."""
    evaluate: Evaluate = Evaluate()
    """Intervals."""
    evidence: Evidence = Evidence()
    """What predictions hang on."""
    compute: Compute = Compute()
    """Machine."""
    seed: int = 0
    """Seed of everything but the split."""

    @model_validator(mode="after")
    def _features_have_no_pixels(self) -> Config:
        if self.data.features is None:
            return self
        idle = [name for name in ("identity", "stain", "encoder") if changed(getattr(self, name))]
        idle += [
            f"train.{name}" for name in [changed(self.train, kept={"crossfit", "mlflow"})] if name
        ]
        idle += [
            f"split.balance={name}" for name in self.split.balance if name in ("tissue", "stain")
        ]
        if self.needs_quality:
            idle.append("quality_vote (mil.votes, select.candidates)")
        if idle:
            message = f"{idle[0]} needs pixels and has no effect with data.features: leave it out"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _selection_is_nested(self) -> Config:
        if self.select is None:
            return self
        if self.split.inner is None or self.split.inner < 3:
            message = (
                "select compares candidates on folds within each fold, of which one stops the "
                f"training and another is scored: set split.inner to 3 or more, not "
                f"{self.split.inner}"
            )
            raise ValueError(message)
        if self.train.crossfit is not None:
            message = (
                "select has no use for train.crossfit: scores of its training slides come from "
                "encoders that saw the slides held out inside; leave one of the two out"
            )
            raise ValueError(message)
        return self

    @property
    def needs_quality(self) -> bool:
        """Whether some vote asks how much tissue a tile has."""
        votes = [vote.name for vote in self.mil.votes]
        if self.select is not None:
            votes += [each.vote.name for each in self.select.candidates if each.vote is not None]
        return "quality_vote" in votes

    @property
    def keeps_weights(self) -> bool:
        """Whether no training changes the embeddings: frozen, or features of another tool."""
        return self.encoder.frozen or self.data.features is not None

    @model_validator(mode="after")
    def _channels_need_stain(self) -> Config:
        method, channels = self.stain.method, self.encoder.channels
        rgb = method in ("none", "reinhard")
        if channels == "rgb" and not rgb:
            message = (
                f"encoder.channels=rgb has no use for stain.method={method}: "
                "set stain.method=none or reinhard, or encoder.channels=he"
            )
            raise ValueError(message)
        if channels != "rgb" and rgb:
            message = (
                f"encoder.channels={channels} needs stain.method=macenko, vahadane, ruifrok or "
                f"macenko_tile, not {method}"
            )
            raise ValueError(message)
        return self
