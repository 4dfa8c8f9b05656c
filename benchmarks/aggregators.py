"""Training of aggregators: ours against torchmil and CLAM, seconds an epoch and memory.

python benchmarks/aggregators.py [--methods abmil clam_sb dsmil] [--bags 200] [--rounds 3]

Bags of lognormal size (about 1,000 tiles on average, 100 to 5,000) with 512 features in float32,
all in memory; half of them have one tile in fifty moved along one direction. Every way trains its
own model of the same widths in a process of its own, and the ways take turns. Ours: packed batches
of 16,384 tiles, precision, memory and optimiser as training has them. torchmil: its
models in its Trainer (validation on one bag, as it must have some), where it is installed (``pip
install torchmil``). CLAM: its loop re-created from the paper, bag by bag in float32 with instance
clustering by cross entropy. The AUROC on bags that were not seen says whether all have learned the
same; the learning rate is in proportion to the bags of a step.

Peak memory is the high-water mark of the process above what it holds once data and libraries are
loaded. TransMIL of torchmil takes minutes: ``--methods transmil --bags 20 --rounds 1``.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import Turn, in_turns, medians
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from mil import devices, loop
from mil.aggregators import create, create_loss
from mil.config import Compute
from mil.data.bags import Bags

DIM, WIDTH, BATCH_TILES, N_TEST = 512, 512, 2**14, 100
LR = 2e-4  # of a bag
ARGS: dict[str, dict[str, Any]] = {
    "abmil": {"hidden": WIDTH, "attention_dim": 128},
    "clam_sb": {"hidden": WIDTH, "attention_dim": 256},
    "dsmil": {"hidden": None, "query_dim": 128},
    "transmil": {"hidden": WIDTH, "n_heads": 8, "n_landmarks": 256},
}


class Data:
    """Planted bags: the first ``n_bags`` train, ``N_TEST`` smaller ones test."""

    def __init__(self, n_bags: int) -> None:
        rng = np.random.default_rng(0)
        seen = np.clip(rng.lognormal(np.log(800), 0.7, n_bags), 100, 5000)
        sizes = np.concatenate([seen, rng.integers(100, 600, N_TEST)]).astype(int)
        self.edges = np.concatenate([[0], np.cumsum(sizes)])
        self.n_bags, self.label = n_bags, np.arange(len(sizes)) % 2
        self.x = rng.standard_normal((self.edges[-1], DIM), dtype=np.float32)
        direction = rng.standard_normal(DIM, dtype=np.float32)
        direction *= 5 / np.linalg.norm(direction)
        for bag in np.flatnonzero(self.label):
            start, stop = self.edges[bag : bag + 2]
            self.x[rng.choice(np.arange(start, stop), -(-(stop - start) // 50))] += direction

    def bag(self, i: int) -> Tensor:
        """``(n_tiles, DIM)``, a view."""
        return torch.from_numpy(self.x[self.edges[i] : self.edges[i + 1]])

    def auroc(self, score: Callable[[Tensor], float]) -> float:
        """Of the bags that were not trained on."""
        unseen = range(self.n_bags, self.n_bags + N_TEST)
        with torch.no_grad():
            scores = [score(self.bag(i)) for i in unseen]
        return float(roc_auc_score(self.label[list(unseen)], scores))


def status(key: str) -> float:
    """Megabytes of a line of ``/proc/self/status``; the high-water mark where there is none."""
    file = Path("/proc/self/status")
    if file.exists():
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return float(lines[key].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(epoch: Callable[[], object], score: Callable[[Tensor], float], data: Data) -> Turn:
    """A turn is one epoch; the score is not timed."""
    held = status("VmRSS")

    def turn() -> dict[str, float]:
        began, busy = time.perf_counter(), time.process_time()
        epoch()
        seconds, cpu = time.perf_counter() - began, time.process_time() - busy
        peak = status("VmHWM") - held
        return {"seconds": seconds, "cpu": cpu, "peak": peak, "auroc": data.auroc(score)}

    return turn


def ours(n_bags: int, threads: int | None, method: str) -> Turn:
    """As ``mil.bag_training``: packed by budget, Fabric's precision, fused AdamW."""
    data = Data(n_bags)
    fabric = devices.fabric(Compute(device="cpu", threads=threads))
    names = [f"{i:03}" for i in range(n_bags)]
    rows = {name: np.arange(*data.edges[i : i + 2]) for i, name in enumerate(names)}
    bags = Bags(data.x, rows, {name: int(data.label[i]) for i, name in enumerate(names)})
    torch.manual_seed(0)
    bare = create(method, dim=DIM, n_classes=2, **ARGS[method])
    bare.standardise(data.x[: data.edges[10]])
    extra = create_loss(method, bare)
    modules = nn.ModuleList([bare] if extra is None else [bare, extra])
    optimizer = loop.OPTIMIZERS.create(
        "adamw", params=modules.parameters(), lr=16 * LR, weight_decay=1e-2
    )
    model, optimizer = fabric.setup(bare, optimizer)
    order = np.random.default_rng(0)

    def epoch() -> None:
        model.train()
        for batch in bags.batches(names, max_tiles=BATCH_TILES, generator=order):
            optimizer.zero_grad(set_to_none=True)
            output = model(batch.x, batch.offsets)
            loss = F.cross_entropy(output.logits.float(), batch.label)
            if extra is not None:
                with fabric.autocast():
                    loss = loss + extra.weight * extra(output, batch.offsets, batch.label)
            fabric.backward(loss)
            loss.item()
            optimizer.step()
        model.eval()

    def score(x: Tensor) -> float:
        return float(model(x, torch.tensor([0, len(x)])).logits.float().diff())

    return timed(epoch, score, data)


def torchmil(n_bags: int, threads: int | None, method: str, batch: int) -> Turn:
    """A model of torchmil in its Trainer, float32."""
    from torch.utils.data import DataLoader
    from torchmil.data import collate_fn
    from torchmil.models import ABMIL, DSMIL, TransMIL
    from torchmil.utils.trainer import Trainer

    torch.set_num_threads(threads or torch.get_num_threads())
    data = Data(n_bags)
    pairs = [{"X": data.bag(i), "Y": torch.tensor(int(data.label[i]))} for i in range(n_bags)]
    torch.manual_seed(0)
    model = {
        "abmil": lambda: ABMIL(
            in_shape=(DIM,), att_dim=128, feat_ext=nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU())
        ),
        "dsmil": lambda: DSMIL(in_shape=(DIM,), att_dim=128),
        "transmil": lambda: TransMIL(in_shape=(DIM,), att_dim=WIDTH, n_heads=8, n_landmarks=256),
    }[method]()
    trainer = Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=batch * LR, weight_decay=1e-2),
        device="cpu",
        disable_pbar=True,
        verbose=False,
    )
    batches = DataLoader(pairs, batch_size=batch, shuffle=True, collate_fn=collate_fn)
    one = DataLoader(pairs[:1], batch_size=1, collate_fn=collate_fn)
    return timed(
        lambda: trainer.train(1, batches, one), lambda x: float(model(x[None]).squeeze()), data
    )


class Gated(nn.Module):
    """CLAM-SB's network (Lu et al. 2021), or with plain attention that of Ilse et al. 2018."""

    def __init__(self, attention_dim: int, *, gated: bool) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU())
        self.value = nn.Linear(WIDTH, attention_dim)
        self.gate = nn.Linear(WIDTH, attention_dim) if gated else None
        self.weigh = nn.Linear(attention_dim, 1)
        self.bag, self.tiles = nn.Linear(WIDTH, 2), nn.ModuleList(nn.Linear(WIDTH, 2) for _ in "ab")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One bag: logits ``(1, 2)``, attention ``(1, n)``, embedded tiles."""
        h = self.embed(x)
        hidden = self.value(h).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(h).sigmoid()
        attention = self.weigh(hidden).T.softmax(1)
        return self.bag(attention @ h), attention, h


def bag_by_bag(n_bags: int, threads: int | None, *, clusters: bool) -> Turn:
    """CLAM's loop; without ``clusters``, plain ABMIL in the same loop."""
    torch.set_num_threads(threads or torch.get_num_threads())
    data = Data(n_bags)
    torch.manual_seed(0)
    model = Gated(256 if clusters else 128, gated=clusters)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=1e-5)
    order, side = np.random.default_rng(0), torch.arange(2).repeat_interleave(8)

    def epoch() -> None:
        for i in order.permutation(n_bags):
            label = torch.tensor(data.label[i : i + 1])
            logits, attention, h = model(data.bag(i))
            loss = F.cross_entropy(logits, label)
            if clusters:
                picked = torch.cat([attention[0].topk(8)[1], (-attention[0]).topk(8)[1]])
                scores = model.tiles[int(label)](h[picked])
                loss = 0.7 * loss + 0.3 * F.cross_entropy(scores, 1 - side)
            loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(epoch, lambda x: float(model(x)[0].diff()), data)


def ways(method: str, n_bags: int, threads: int | None) -> Iterator[tuple[str, Callable[[], Turn]]]:
    """What is compared for a method; the first is what ratios are to."""
    if method == "clam_sb":
        yield "CLAM-SB, its loop", partial(bag_by_bag, n_bags, threads, clusters=True)
    elif importlib.util.find_spec("torchmil"):
        yield f"torchmil {method}, batch 1", partial(torchmil, n_bags, threads, method, 1)
        if method == "abmil":
            yield "torchmil abmil, batch 16", partial(torchmil, n_bags, threads, method, 16)
    else:
        print("torchmil is not installed: its rows are left out")
    if method == "abmil":
        yield "bag by bag, float32", partial(bag_by_bag, n_bags, threads, clusters=False)
    yield f"ours, {method}", partial(ours, n_bags, threads, method)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", choices=ARGS, default=["abmil", "clam_sb", "dsmil"])
    parser.add_argument("--bags", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of each way; all cores where not given")
    options = parser.parse_args()
    compared = {m: dict(ways(m, options.bags, options.threads)) for m in options.methods}
    every = {name: way for of_method in compared.values() for name, way in of_method.items()}
    measured = in_turns(every, options.rounds)
    print(f"{'way':28}{'s/epoch':>9}{'cpu s':>8}{'peak MB':>9}{'AUROC':>7}   ours is faster by")
    for method, names in compared.items():
        mine = measured[f"ours, {method}"]
        for name in names:
            middle = medians(measured[name])
            pairs = zip(measured[name], mine, strict=True)
            ratio = float(np.median([a["seconds"] / b["seconds"] for a, b in pairs]))
            print(
                f"{name:28}{middle['seconds']:9.2f}{middle['cpu']:8.2f}{middle['peak']:9.0f}"
                f"{measured[name][-1]['auroc']:7.3f}{ratio:8.2f} x"
            )


if __name__ == "__main__":
    main()
