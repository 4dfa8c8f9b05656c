"""The configuration: every shipped YAML loads, every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mil import settings as config
from mil.config import Train
from splits.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
YAMLS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs() -> None:
    assert len(YAMLS) >= 10


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configs(path: Path) -> None:
    from mil import train

    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith("# ")
    assert f"slidewise run {path.relative_to(ROOT).as_posix()}" in text
    train.check(config.load(path))


def test_the_demo_is_the_phantom_config() -> None:
    from mil.run import demo_config

    assert demo_config() == config.load(ROOT / "configs" / "phantom.yaml")


def test_round_trip(tmp_path: Path) -> None:
    for path in YAMLS:
        loaded = config.load(path)
        config.save(loaded, tmp_path / "c.yaml")
        assert config.load(tmp_path / "c.yaml") == loaded


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_set(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {root: tiles}")
    loaded = config.load(path, ["train.lr=3e-4", "split.folds=3", "mil.aggregators=[{name: mean}]"])
    assert loaded.train.lr == 3e-4
    assert loaded.split.folds == 3
    assert [a.name for a in loaded.mil.aggregators] == ["mean"]
    assert loaded.train.batch_size == Train().batch_size


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("data: {rot: tiles}", [], ["data.rot", "did you mean 'data.root'"]),
        ("data: {root: t}\ntrian: {lr: 1}", [], ["trian", "did you mean 'train'"]),
        ("data: {root: t}\ntrain: {augment: {flip: 1}}", [], ["flip", "horizontal_flip"]),
        ("data: {root: t}", ["train.rate=1"], ["train.rate"]),
        ("data: {root: t}", ["train.lr"], ["key=value"]),
        ("data: {root: t}", ["train.lr=fast"], ["train.lr", "fast"]),
        ("data: {}", [], ["data.root"]),
        ("encoder: {name: resnet18}", [], ["data"]),
        ("- a", [], ["no sections"]),
        ("a: [", [], ["not readable YAML"]),
        ("data: {root: t}\nencoder: {channels: rgb}", [], ["stain.method=none"]),
        ("data: {root: t}\nstain: {method: none}", [], ["macenko"]),
        ("data: {root: t}\nencoder: {frozen: true}", [], ["checkpoint"]),
        ("data: {root: t}\nencoder: {image_px: 999}", [], ["resize_px"]),
        ("data: {root: t}\nsplit: {folds: 1}", [], ["split.folds"]),
    ],
)
def test_mistakes(tmp_path: Path, text: str, settings: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        config.load(write(tmp_path, text), settings)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("encoder.name=resnet81", "resnet18"),
        ("train.optimizer.name=adam", "adamw"),
        ("train.schedule={name: step, args: {step: 3}}", "step_size"),
        ("mil.aggregators=[{name: abml}]", "abmil"),
        ("mil.aggregators=[{name: abmil, args: {hiden: 3}}]", "hidden"),
        ("mil.aggregators=[{name: mean}, {name: mean}]", "twice"),
    ],
)
def test_names_are_bound_before_work(tmp_path: Path, setting: str, words: str) -> None:
    from mil import train

    loaded = config.load(write(tmp_path, "data: {root: tiles}"), [setting])
    with pytest.raises(InputError, match=words):
        train.check(loaded)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        config.load(tmp_path / "no.yaml")
