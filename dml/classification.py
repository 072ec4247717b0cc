"""Learning to classify from a part of the labels: the protocol of MbDML's paper (book/10_mbdml).

Ten methods train the same network on the labelled tenth of the training images; each is judged by
its accuracy over all test images, of classes that it has seen, in ten runs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_metric_learning import losses as library
from torch import Tensor, nn
from tqdm import tqdm

from dml import data, model, nngk, runs, train

# pytorch-metric-learning's losses as it has them; (classes, width of the feature) -> loss
BASELINES = {
    "contrastive": lambda classes, width: library.ContrastiveLoss(),
    "proxy_anchor": library.ProxyAnchorLoss,
    "soft_triple": library.SoftTripleLoss,
    "sup_con": lambda classes, width: library.SupConLoss(),
    "triplet": lambda classes, width: library.TripletMarginLoss(),
}
METHODS = (*BASELINES, "mixup", "nngk", "mbdml1", "mbdml2", "mbdml3")


@dataclass(frozen=True)
class Config:
    """A table of runs on one data set. The parameters cell of book/10_mbdml has the same names and
    defaults, one a line; the paper's settings are recipes."""

    dataset: str = "digits"  # a name of dml.data.NAMES
    dataset_options: dict = field(default_factory=dict)  # for its reader
    methods: tuple[str, ...] = METHODS
    seeds: int = 10  # runs of each method: labelled images, weights, batches, mixing
    label_fraction: float = 0.1  # of each class's training images
    sigma: float = 10.0  # of the kernels
    neighbours: int = 20  # N; the paper's 200 are more than there are labelled digits
    refresh: int = 5  # epochs between two computations of the centres
    alpha: float = 1.0  # lambda ~ Beta(alpha, alpha); 0 does not mix
    released: bool = False  # compute what the authors' code does, dml.nngk.MbDML
    backbone: str = "small"  # or any timm model
    weights: str = "none"  # or pretrained, or a path
    freeze_norm: bool = False  # batch norm stays as it was given
    augment: str = "none"  # a name of dml.data.transforms.AUGMENTATIONS
    epochs: int = 30  # passes over the labelled images
    batch_size: int = 32  # images of a step
    images_per_class: int | None = None  # in a batch; None shuffles freely
    lr: float = 1e-3  # Adam's
    proxy_lr_factor: float = 1.0  # for what is not the network: proxies, kernel weights, layer
    eval_every: int = 5  # epochs between two tests
    device: str = "auto"  # the GPU where there is one
    workers: int = 0  # processes that decode images
    root: str | None = None  # folder of the data sets; None is datasets/ of the project
    tag: str = ""  # a name for a variant, part of the records' names

    from_namespace = classmethod(train.Config.from_namespace.__func__)

    def __post_init__(self):
        train._check_types(self)
        for name, values, valid in (
            ("dataset", [self.dataset], data.NAMES),
            ("methods", self.methods, METHODS),
            ("augment", [self.augment], data.transforms.AUGMENTATIONS),
        ):
            for value in values:
                if value not in valid:
                    raise ValueError(f"{name}: {value!r} is not one of: {', '.join(valid)}")
        for name in ("seeds", "sigma", "neighbours", "refresh", "epochs", "lr", "eval_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    def id(self, method: str, seed: int) -> str:
        """The name of one run's record: dataset-method-sSEED, then the tag."""
        return "-".join(part for part in (self.dataset, method, f"s{seed}", self.tag) if part)


def load(config: Config) -> data.Sets:
    """The data set with the same classes in train and query. One that was made for retrieval, whose
    classes are apart, is put together, and half of each class's images train."""
    sets = data.load(config.dataset, config.root, **config.dataset_options)
    if sets.train.classes == sets.query.classes:
        return sets
    parts = [part for part in vars(sets).values() if part is not None]
    if not all(isinstance(part.images, Tensor) for part in parts):
        raise ValueError(f"{config.dataset}: give dataset_options a size, images must be in memory")
    names = sorted({name for part in parts for name in part.classes})
    place = {name: c for c, name in enumerate(names)}
    labels = [torch.tensor([place[name] for name in part.classes])[part.labels] for part in parts]
    whole = data.Split(torch.cat([part.images for part in parts]), torch.cat(labels), names)
    train_on = data.label_fraction(whole.labels, 0.5)
    rest = torch.ones(len(whole), dtype=torch.bool)
    rest[train_on] = False
    return data.Sets(whole.take(train_on), whole.take(rest.nonzero().flatten()))


def labelled(config: Config, sets: data.Sets, seed: int) -> data.Split:
    """The training images that keep their labels in the run of this seed.

    Raises:
        ValueError: a class with fewer than two: its own centre left out, an image would have none
            of its class. `dml.data.label_fraction` names a class that keeps none.
    """
    split = sets.train.take(data.label_fraction(sets.train.labels, config.label_fraction, seed))
    counts = split.labels.bincount()
    if counts.min() < 2:
        raise ValueError(
            f"label_fraction={config.label_fraction} leaves class "
            f"{split.classes[counts.argmin()]!r} one label; kernels need two"
        )
    return split


class Network(model.EmbeddingModel):
    """Backbone and average pooling: the feature of MbDML's code, neither projected nor normalised.

    Args:
        config: of the run.
        in_chans: channels of the images.
    """

    def __init__(self, config: Config, in_chans: int):
        self.colours = 3 if config.weights == "pretrained" else in_chans
        super().__init__(config.backbone, 1, self.colours, config.weights)
        self.embedding = nn.Identity()
        self.freeze_norm = config.freeze_norm

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the backbone was trained on: grey ones in all three colours."""
        return super().prepare(images.expand(-1, self.colours, -1, -1))

    def pool(self, maps: Tensor) -> Tensor:
        """Average over positions, (B, F, h, w) -> (B, F)."""
        return maps.mean((2, 3))

    def head(self, pooled: Tensor) -> Tensor:
        """The pooled feature as it is."""
        return pooled

    def embed(self, inputs: Tensor) -> Tensor:
        """Prepared images to features, (B, C, H, W) -> (B, F)."""
        return self.pool(self.features(inputs))

    def train(self, mode: bool = True) -> Network:
        """Batch norm stays in evaluation mode where it is frozen."""
        super().train(mode)
        if self.freeze_norm:
            model.freeze_batch_norm(self)
        return self


class Baseline(nn.Module):
    """A loss of pytorch-metric-learning, called as `dml.nngk.MbDML` is, and its kernel classifier,
    which does not learn."""

    linear = None

    def __init__(self, name: str, kernels: nngk.GaussianKernels):
        super().__init__()
        self.loss = BASELINES[name](kernels.num_classes, kernels.centres.shape[1])
        self.kernels = kernels.requires_grad_(False)

    def refresh(self, centres: Tensor) -> None:
        """Move the classifier's centres, (M, D)."""
        self.kernels.refresh(centres)

    def forward(self, embed, inputs, labels, own) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.loss(embed(inputs), labels)


@dataclass
class State:
    """Where a run is, after an epoch."""

    network: Network
    criterion: nngk.MbDML | Baseline
    labelled: data.Split
    device: torch.device

    @torch.inference_mode()
    def features(self, split: data.Split) -> Tensor:
        """Features of a split in its order, (n, F), on the device."""
        self.network.eval()
        batches = data.loader(split, 500)
        return torch.cat([self.network(images.to(self.device)) for images, _ in batches])

    @torch.inference_mode()
    def predict(self, features: Tensor, centres: Tensor, own: bool = False) -> Tensor:
        """Classes by the method's classifier, (n, F) -> (n,).

        Args:
            features: of the images.
            centres: features of the labelled images by the same network.
            own: the images are the labelled ones, and none is its own neighbour.
        """
        if self.criterion.linear is not None and not self.criterion.method.b:
            return self.criterion.logits(features).argmax(1)
        kernels = copy.deepcopy(self.criterion.kernels)
        kernels.refresh(centres)
        blocks = torch.arange(len(features), device=features.device).split(nngk.BLOCK)
        return torch.cat([kernels(features[i], i if own else None).argmax(1) for i in blocks])


def epochs(config: Config, sets: data.Sets, method: str, seed: int) -> Iterator[tuple[dict, State]]:
    """Train, an epoch at a time: (row of the history, state of the run). Epoch 0 is before any.

    The whole protocol: the labelled images are the centres, moved every `refresh` epochs; the test
    images are looked at every `eval_every` and after the last epoch.

    Raises:
        FloatingPointError: a loss that is not finite, with the epoch.
    """
    device = train.pick_device(config.device)
    torch.manual_seed(seed)
    split = labelled(config, sets, seed)
    images, _ = split[0]
    state = State(Network(config, images.shape[0]).to(device), None, split, device)
    batches = data.loader(
        split,
        config.batch_size,
        config.images_per_class,
        train=True,
        transform=data.transforms.AUGMENTATIONS[config.augment],
        workers=config.workers,
        seed=seed,
    )
    labels = split.labels.to(device)
    centres = state.features(split)
    kernels = nngk.GaussianKernels(centres, labels, config.sigma, config.neighbours)
    rng = np.random.default_rng(seed)
    if method in BASELINES:
        state.criterion = Baseline(method, kernels).to(device)
    else:
        options = config.alpha, config.released, rng
        state.criterion = nngk.MbDML(method, kernels, *options).to(device)
    network, criterion = state.network, state.criterion
    learnt = [parameter for parameter in criterion.parameters() if parameter.requires_grad]
    groups = [{"params": network.parameters()}]
    groups += [{"params": learnt, "lr": config.lr * config.proxy_lr_factor}] if learnt else []
    optimizer = torch.optim.Adam(groups, lr=config.lr)
    for epoch in range(config.epochs + 1):
        row = {"epoch": epoch}
        if epoch:
            network.train()
            batches.set_epoch(epoch)
            total = 0.0
            for (own, _), (images, targets) in zip(batches.batches, batches, strict=True):
                inputs = network.prepare(images.to(device))
                own, targets = torch.from_numpy(own).to(device), targets.to(device)
                loss = criterion(network.embed, inputs, targets, own)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            if not math.isfinite(total):
                raise FloatingPointError(f"{method}: the loss is {total} in epoch {epoch}")
            row["loss"] = total / len(batches)
        centres = state.features(split)
        row["train_accuracy"] = accuracy(state.predict(centres, centres, own=True), labels)
        if epoch % config.eval_every == 0 or epoch == config.epochs:
            predicted = state.predict(state.features(sets.query), centres)
            row["test_accuracy"] = accuracy(predicted, sets.query.labels.to(device))
        if epoch % config.refresh == 0:
            criterion.refresh(centres)
        yield row, state


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Part of all images whose class is right, (n,), (n,) -> a number in [0, 1]."""
    return (predicted == labels).float().mean().item()


# -- Runs and their records


def run(config: Config, sets: data.Sets, method: str, seed: int) -> dict:
    """One run's record: the one in results/mbdml/ where there is one, else made and kept there.

    Last epoch and best epoch have separate names, as in `dml.train.fit`.

    Raises:
        ValueError: a record of this name that was made with other settings.
    """
    path = folder() / f"{config.id(method, seed)}.json"
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    for key in ("methods", "seeds", "device", "workers", "root"):  # which runs and where, not what
        del settings[key]
    if path.exists():
        record = json.loads(path.read_text())
        other = [key for key in settings if record["config"].get(key) != settings[key]]
        if other:
            raise ValueError(
                f"{path.stem} was run with another {', '.join(other)}: give this one a tag"
            )
        return record
    start = time.perf_counter()
    bar = tqdm(epochs(config, sets, method, seed), path.stem, config.epochs + 1, mininterval=2)
    history, states = zip(*bar, strict=True)
    state = states[-1]
    tested = [row for row in history if "test_accuracy" in row]
    best = max(tested, key=lambda row: row["test_accuracy"])
    record = {
        "id": path.stem,
        "method": method,
        "seed": seed,
        "config": settings,
        "metrics": {
            "last": tested[-1] | {"selected_by": "the last epoch"},
            "best": best | {"selected_by": "test_accuracy on the test images"},
        },
        "history": list(history),
        "images": {"labelled": len(state.labelled), "test": len(sets.query)},
        "seconds": time.perf_counter() - start,
        "device": torch.cuda.get_device_name(state.device)
        if state.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        **runs.provenance(),
    }
    runs.write_json(path, record)
    return record


def folder() -> Path:
    """Where the records are, one file a run."""
    return runs.results() / "mbdml"


def table(config: Config, sets: data.Sets | None = None) -> pd.DataFrame:
    """All runs of a configuration, a row an epoch: method, seed and the history's columns.

    Args:
        config: the runs.
        sets: of `load`; None takes only those that are on record.
    """
    rows = []
    for seed in range(config.seeds):
        for method in config.methods:
            if sets is not None or (folder() / f"{config.id(method, seed)}.json").exists():
                record = run(config, sets, method, seed)
                rows += [{"method": method, "seed": seed} | row for row in record["history"]]
    return pd.DataFrame(rows)


def summary(history: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean and standard deviation over runs of the last epoch's test accuracy, in per cent.

    Args:
        history: from `table`.
        published: rows with `method`, `accuracy_mean`, `accuracy_std` of the same data set, set
            beside.

    Returns:
        A row a method, in the order of METHODS.
    """
    last = history[history["epoch"] == history["epoch"].max()]
    accuracy = 100 * last.groupby("method")["test_accuracy"].agg(["mean", "std"])
    rows = accuracy.reindex([name for name in METHODS if name in accuracy.index])
    rows["runs"] = last.groupby("method").size()
    if published is not None and len(published):
        beside = published.set_index("method")[["accuracy_mean", "accuracy_std"]]
        rows = rows.join(beside.set_axis(["published_mean", "published_std"], axis=1))
    return rows


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """`summary` to look at: mean ± standard deviation as one cell, in per cent; of one run, the
    mean alone; nothing where there is neither."""

    def join(prefix):
        pairs = zip(rows[f"{prefix}mean"], rows[f"{prefix}std"], strict=True)
        cell = [f"{m:.2f}" + (f" ± {s:.2f}" if s == s else "") for m, s in pairs]
        return ["" if text == "nan" else text for text in cell]

    shown = {"accuracy (%)": join("")}
    if "published_mean" in rows:
        shown["published (%)"] = join("published_")
    return pd.DataFrame(shown, index=rows.index).assign(runs=rows["runs"])


def results() -> pd.DataFrame:
    """The summaries of all recipes that have runs on record, with the paper's beside: the rows of
    results/mbdml.csv."""
    published = pd.read_csv(runs.ROOT / "results" / "published" / "mbdml.csv")
    tables = []
    for name in runs.recipe_names("10_mbdml"):
        settings = runs.recipe(name)
        del settings["notebook"]
        config = Config(**settings)
        history = table(config)
        if len(history):
            beside = published[published["dataset"] == config.dataset]
            rows = summary(history, beside).reset_index()
            tables.append(rows.assign(dataset=config.dataset).set_index(["dataset", "method"]))
    return pd.concat(tables) if tables else pd.DataFrame(columns=["mean", "std", "runs"])
