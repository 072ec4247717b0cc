"""Training as the algorithm box of the paper: one flat configuration, one loop
(book/06_training)."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState, notebook_launcher
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dml import (
    analysis,
    checkpoints,
    data,
    evaluate,
    losses,
    mixing_methods,
    mixup,
    model,
    parallel,
    proxygml,
)

MIXES = ("none", *model.SPACES)
# losses of several proxies a class, which are not of the generic form
OTHERS = {"proxygml": proxygml.ProxyGML, "soft_triple": losses.soft_triple}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. The parameters cell of book/06_training has the same names,
    one a line."""

    dataset: str = "glyphs"  # a name of dml.data.NAMES
    dataset_options: dict = field(default_factory=dict)  # for its reader: {"classes": 300}
    loss: str = "multi_similarity"  # a name of dml.losses.LOSSES, proxygml or soft_triple
    loss_options: dict = field(default_factory=dict)  # the paper's where left out
    miner_epsilon: float | None = None  # multi-similarity's miner; None compares every pair
    mix: str = "embed"  # none; Metrix's space input, feature or embed; a name of mixing_methods
    pairs: tuple[str, ...] = mixup.PAIRS[:2]  # one is drawn for each iteration
    hardest: int | None = 3  # k, the negatives of an anchor that are mixed; None for all
    positives: int | None = None  # positives of an anchor that are mixed; None for all
    alpha: float = 2.0  # lambda ~ Beta(alpha, alpha)
    weight: float = 0.4  # w, of the mixed loss
    backbone: str = "small"  # or any timm model
    weights: str = "none"  # or "pretrained", or a path
    frozen_bn: bool = False  # batch norm keeps its pretrained statistics, as small batches need
    embedding_size: int = 128
    augment: str = "none"  # a name of dml.data.transforms.AUGMENTATIONS
    epochs: int = 10  # passes over the training images
    batch_size: int = 100
    images_per_class: int | None = 5  # in a batch; None shuffles freely
    lr: float = 1e-3
    proxy_lr_factor: float = 100.0  # proxies learn faster: each sees few gradients
    weight_decay: float = 1e-4
    adam_eps: float = 1e-8  # large, it turns Adam towards plain gradient descent
    warmup: int = 0  # first epochs, in which the backbone waits for the head and the proxies
    schedule: str = "cosine"  # down to zero, or "step"
    lr_step: int = 10  # epochs between two steps
    lr_gamma: float = 0.1  # factor of a step
    clip_value: float | None = 10.0  # of each gradient component, as Metrix's code does
    eval_every: int = 2  # epochs
    k: tuple[int, ...] = (1, 2, 4, 8)  # of Recall@K
    clustering: bool = False  # NMI and AMI of k-means, after the last epoch: slow at many classes
    space: bool = False  # alignment, uniformity, utilization and more, after the last epoch
    folds: int = 0  # parts of the training classes, one held out for validation; 0 tests instead
    fold: int = 0  # which of them is held out
    seed: int = 0  # of weights, batches, mixing; equal seeds see equal batches
    device: str = "auto"  # the GPU where there is one
    precision: str = "float32"  # of the network; the loss is always computed in float32
    channels_last: bool = False  # order of feature maps in memory: faster convolutions
    compile: bool = False  # torch.compile of the backbone: minutes first, faster steps then
    accumulate: int = 1  # parts of a batch that pass the backbone in turn, to save memory
    processes: int = 1  # replicas on this machine that share the work, one a GPU
    workers: int = 0  # processes that decode images
    root: str | None = None  # folder of the data sets; None is datasets/ of the project
    profile: str = "paper"  # the size of the run, part of its name: paper, or smoke
    tag: str = ""  # a name for a variant, part of the run's name

    def __post_init__(self):
        _check_types(self)
        for name, valid in (
            ("dataset", data.NAMES),
            ("loss", losses.LOSSES | OTHERS),
            ("mix", (*MIXES, *mixing_methods.METHODS)),
            ("schedule", ("cosine", "step")),
            ("precision", PRECISIONS),
            ("profile", ("paper", "smoke")),
            ("augment", data.transforms.AUGMENTATIONS),
        ):
            value = getattr(self, name)
            if value not in valid:
                raise ValueError(f"{name}={value!r} is not one of: {', '.join(valid)}")
        positive = ("epochs", "batch_size", "embedding_size", "lr", "alpha", "eval_every")
        for name in (*positive, "accumulate", "processes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"warmup={self.warmup} must be 0 to {self.epochs - 1}, below epochs")
        for name in ("accumulate", "processes"):
            if getattr(self, name) > 1 and not self.frozen_bn:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs frozen_bn=True: batch norm would take the "
                    "statistics of a part of the batch"
                )
        if not all(c.isalnum() or c in "_.=" for c in self.tag):
            raise ValueError(
                f"tag={self.tag!r}: letters, digits, '_', '.' and '=' only, it names a folder"
            )
        if self.miner_epsilon is not None and self.loss != "multi_similarity":
            raise ValueError(f"miner_epsilon is multi-similarity's; the loss is {self.loss}")
        if self.loss == "soft_triple" and self.mix != "none":
            raise ValueError(f"mix={self.mix!r}: soft_triple cannot be mixed, give mix='none'")
        if self.mix in mixing_methods.METHODS:
            mixing_methods.check(self.mix, self.loss)

    @classmethod
    def from_namespace(cls, namespace: dict) -> Config:
        """The configuration that a notebook's parameters make, given its `globals()`.

        papermill only warns of a parameter that a notebook does not have, and adds it; here it
        stops the run.

        Raises:
            ValueError: a name that is not a field, with the list of those that are.
        """
        valid = {f.name for f in dataclasses.fields(cls)}
        plain = str | int | float | list | tuple | dict | None
        given = {
            name: value
            for name, value in namespace.items()
            if isinstance(value, plain) and not name.startswith("_") and name not in ("In", "Out")
        }
        unknown = sorted(given.keys() - valid)
        if unknown:
            raise ValueError(
                f"no such parameter: {', '.join(unknown)}. Valid are: {', '.join(sorted(valid))}"
            )
        return cls(**given)

    @property
    def id(self) -> str:
        """dataset-loss-mix-sSEED, then fold, tag and profile where they say anything."""
        parts = [self.dataset, self.loss, self.mix, f"s{self.seed}", self.tag]
        if self.folds:
            parts.insert(4, f"fold{self.fold}of{self.folds}")
        if self.profile != "paper":
            parts.append(self.profile)
        return "-".join(part for part in parts if part)


def _check_types(config: Config) -> None:
    """Refuse a value of the wrong type, by the annotation; lists from YAML become tuples, whole
    numbers floats."""
    for f in dataclasses.fields(config):
        value, kinds = getattr(config, f.name), [kind.strip() for kind in f.type.split("|")]
        if isinstance(value, list):
            value = tuple(value)
        if "float" in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        name = "None" if value is None else type(value).__name__
        if name not in [kind.split("[")[0] for kind in kinds]:
            raise ValueError(f"{f.name}={value!r} must be {f.type}, not {name}")
        object.__setattr__(config, f.name, value)


def load(config: Config) -> data.Sets:
    """The classes to train on and those to evaluate on: the test classes, or a fold of the training
    classes."""
    sets = data.load(config.dataset, config.root, **config.dataset_options)
    return sets.fold(config.fold, config.folds) if config.folds else sets


@dataclass
class Parts:
    """What one run trains with, built from its configuration and data."""

    network: model.EmbeddingModel
    criterion: nn.Module
    miner: Callable | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    rng: np.random.Generator  # of mixing


def build(config: Config, sets: data.Sets, device: torch.device) -> Parts:
    """Network, loss and optimiser of a run. The seed decides every initial weight.

    Raises:
        ValueError: a group of processes that is not of `config.processes`.
    """
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    rng = np.random.default_rng(config.seed)
    if dist.is_initialized() and dist.get_world_size() != config.processes:
        raise ValueError(
            f"processes={config.processes} in a group of {dist.get_world_size()} processes"
        )
    images, _ = sets.train[0]
    network = model.EmbeddingModel(
        config.backbone, config.embedding_size, images.shape[0], config.weights
    ).to(device, memory_format=memory_format(config))
    if config.compile:
        network.features = torch.compile(network.features)
    if config.accumulate > 1:
        part = math.ceil(config.batch_size / config.accumulate)
        network.features = parallel.in_parts(network.features, part)
    if dist.is_initialized():
        network.features = parallel.in_processes(network.features)
    clean = losses.build(
        config.loss, len(sets.train.classes), config.embedding_size, OTHERS, **config.loss_options
    )
    criterion = clean
    if config.mix in mixing_methods.METHODS:
        criterion = mixing_methods.build(
            config.mix,
            clean,
            rng,
            hardest=config.hardest,
            alpha=config.alpha,
            weight=config.weight,
            num_classes=len(sets.train.classes),
            embedding_size=config.embedding_size,
        )
    elif config.mix != "none" and config.loss == "proxygml":
        criterion = proxygml.MixedProxyGML(
            clean, config.hardest, config.alpha, config.weight, generator=rng
        )
    elif config.mix != "none":
        criterion = mixup.Metrix(
            clean,
            config.pairs,
            config.hardest,
            config.alpha,
            config.weight,
            positives=config.positives,
            generator=rng,
        )
    criterion.to(device)
    groups = [{"params": list(network.parameters())}]
    if proxies := list(criterion.parameters()):
        groups.append({"params": proxies, "lr": config.lr * config.proxy_lr_factor})
    optimizer = torch.optim.Adam(
        groups, lr=config.lr, eps=config.adam_eps, weight_decay=config.weight_decay
    )
    factor = {
        "cosine": lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / config.epochs)),
        "step": lambda epoch: config.lr_gamma ** (epoch // config.lr_step),
    }[config.schedule]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    miner = None if config.miner_epsilon is None else MultiSimilarityMiner(config.miner_epsilon)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    return Parts(network, criterion, miner, optimizer, schedule, scaler, rng)


def memory_format(config: Config) -> torch.memory_format:
    """The order in memory that the run has its images and feature maps in."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def steps(
    config: Config, parts: Parts, batches, device: torch.device, bar: tqdm
) -> Iterator[tuple[Tensor, int]]:
    """One epoch, step by step: the loss of each batch, detached, and its number of images.

    Raises:
        FloatingPointError: a loss that is not finite, with the step.
    """
    network, criterion = parts.network, parts.criterion
    network.train()
    if config.frozen_bn:
        model.freeze_batch_norm(network)
    for step, (images, labels) in enumerate(batches):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(
            device.type, PRECISIONS[config.precision], config.precision != "float32"
        ):
            inputs = network.prepare(images)  # (B, C, H, W)
            inputs = inputs.contiguous(memory_format=memory_format(config))
            maps = network.features(inputs)  # (B, F, h, w), the one pass through the backbone
            embeddings = network.head(network.pool(maps))  # (B, D)
            mined = parts.miner(embeddings, labels) if parts.miner else None
            if config.mix == "none":
                loss = criterion(embeddings, labels, mined)
            else:  # the whole of Metrix
                mix = network.mixer(mixing_methods.space(config.mix), inputs, maps)
                loss = criterion(embeddings, labels, mined, mix=mix)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step} of the epoch")
        parts.optimizer.zero_grad(set_to_none=True)
        parts.scaler.scale(loss).backward()
        if dist.is_initialized():
            parallel.average_gradients(network, criterion)
        if config.clip_value is not None:
            parts.scaler.unscale_(parts.optimizer)
            nn.utils.clip_grad_value_(network.parameters(), config.clip_value)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        bar.update()
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        yield value, len(labels)


@torch.inference_mode()
def embed(network: nn.Module, split: data.Split, config: Config, device: torch.device) -> Tensor:
    """Embeddings of a split in its order, (n, D) on the device, float32; the network is left in
    evaluation mode."""
    network.eval()
    batches = data.loader(split, 500, workers=config.workers)
    with torch.autocast(device.type, PRECISIONS[config.precision], config.precision != "float32"):
        return torch.cat([network(images.to(device)).float() for images, _ in batches])


def evaluate_on(
    network: nn.Module,
    sets: data.Sets,
    config: Config,
    device: torch.device,
    clustering: bool = False,
    space: bool = False,
) -> dict:
    """Retrieval metrics on the test classes: query against gallery where there is one, else among
    themselves. On request NMI and AMI of the queries, and `dml.analysis.space` of the queries
    beside the training images."""
    query = embed(network, sets.query, config, device)
    labels = sets.query.labels.to(device)
    options = {"k": config.k, "clustering": clustering}
    if sets.gallery is not None:
        options["gallery"] = embed(network, sets.gallery, config, device)
        options["gallery_labels"] = sets.gallery.labels.to(device)
    measured = evaluate.retrieval(query, labels, **options)
    if space:
        measured |= analysis.space(query, labels, embed(network, sets.train, config, device))
    return measured


def launch(config: Config, sets: data.Sets, checkpoint: Path) -> tuple[Parts, dict]:
    """`fit`, in `config.processes` processes of this machine: from a notebook as from a script.

    Accelerate starts them, and gives each its GPU (or a share of the CPU). What they have trained
    comes back by the checkpoint of the last epoch.

    Args, returns: as for `fit`; the checkpoint is needed.

    Raises:
        ValueError: more processes than GPUs, where there is a GPU.
    """
    if config.processes > 1:
        gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
        if 0 < gpus < config.processes:
            raise ValueError(f"processes={config.processes}: this machine has {gpus} GPUs")
        notebook_launcher(
            _replica,
            (config, sets, checkpoint),
            config.processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a free port: runs may go on beside each other
        )
    return fit(config, sets, checkpoint)


def _replica(config: Config, sets: data.Sets, checkpoint: Path) -> None:
    PartialState._reset_state()  # a fork has its parent's, who was alone
    PartialState(cpu=config.device == "cpu")  # joins the processes; the GPU of its number is "cuda"
    fit(config, sets, checkpoint)
    dist.destroy_process_group()


def fit(config: Config, sets: data.Sets, checkpoint: Path | None = None) -> tuple[Parts, dict]:
    """Train and evaluate as `config` says; what was trained, and what the run's record holds of it.

    In a process group of torch.distributed (`launch`) every process calls it alike; they share the
    backbone's work (`dml.parallel`), and the first of them writes.

    Args:
        config: the run.
        sets: from `load`.
        checkpoint: a folder that is written after each epoch and continued from where it exists, or
            from the one before it where it is damaged; None keeps none. The folder `tensorboard`
            beside it shows the run while it goes on.

    Returns:
        The trained parts (`network`, `criterion` with its proxies), and a dict: `metrics` ("last"
        epoch, the headline, and the "best" by Recall@1, which is selected on test data as the
        papers do, unless `folds` holds classes out), `history` by epoch, `seconds`,
        `images_per_second`, `peak_memory_mb` (of the GPU), `device`.
    """
    device = pick_device(config.device)
    parts = build(config, sets, device)
    batches = data.loader(
        sets.train,
        config.batch_size,
        images_per_class=config.images_per_class,
        train=True,
        transform=data.transforms.AUGMENTATIONS[config.augment],
        workers=config.workers,
        seed=config.seed,
    )
    settings, history = dataclasses.asdict(config), []
    if checkpoint is not None:
        history = checkpoints.load(checkpoint, settings, parts)
    writes = checkpoint is not None and parallel.is_first() and len(history) < config.epochs
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    total = config.epochs * len(batches)
    with (
        tqdm(
            total=total,
            initial=len(history) * len(batches),
            unit="step",
            desc=config.id,
            mininterval=2,
            disable=not parallel.is_first(),
        ) as bar,
        SummaryWriter(checkpoint.parent / "tensorboard") if writes else nullcontext() as board,
    ):
        for epoch in range(len(history), config.epochs):
            batches.set_epoch(epoch)
            parts.network.backbone.requires_grad_(epoch >= config.warmup)
            start = time.perf_counter()
            results = list(steps(config, parts, batches, device, bar))
            row = {
                "epoch": epoch + 1,
                "loss": sum(loss for loss, _ in results) / len(results),
                "lr": parts.schedule.get_last_lr()[0],
                "train_seconds": time.perf_counter() - start,
                "images": sum(size for _, size in results),
            }
            parts.schedule.step()
            last = epoch + 1 == config.epochs
            if (epoch + 1) % config.eval_every == 0 or last:
                start = time.perf_counter()
                row |= evaluate_on(
                    *(parts.network, sets, config, device),
                    clustering=config.clustering and last,
                    space=config.space and last,
                )
                row["eval_seconds"] = time.perf_counter() - start
            if device.type == "cuda":
                row["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
            history.append(row)
            if writes:
                _show(board, row, [loss for loss, _ in results], epoch * len(batches))
                checkpoints.save(checkpoint, settings, parts, history)
    return parts, _summary(config, history, device)


def _summary(config: Config, history: list[dict], device: torch.device) -> dict:
    evaluated = [row for row in history if "recall_at_1" in row]
    measured = ("epoch", "recall", "precision", "r_prec", "mean_average", "nmi", "ami", "queries")
    measured += analysis.MEASURES
    last, best = (
        {key: value for key, value in row.items() if key.startswith(measured)}
        for row in (evaluated[-1], max(evaluated, key=lambda row: row["recall_at_1"]))
    )
    train_seconds = sum(row["train_seconds"] for row in history)
    cuda = device.type == "cuda"
    judges = "validation" if config.folds else "test"
    return {
        "metrics": {
            "last": last | {"selected_by": "the last epoch"},
            "best": best | {"selected_by": f"recall_at_1 on the {judges} classes"},
        },
        "history": history,
        "seconds": {
            "train": train_seconds,
            "evaluate": sum(row["eval_seconds"] for row in evaluated),
        },
        "images_per_second": sum(row["images"] for row in history) / train_seconds,
        "peak_memory_mb": max(row["peak_memory_mb"] for row in history) if cuda else None,
        "device": torch.cuda.get_device_name(device)
        if cuda
        else f"CPU, {torch.get_num_threads()} threads",
    }


def _show(board: SummaryWriter, row: dict, step_losses: list[float], step: int) -> None:
    for i, loss in enumerate(step_losses):
        board.add_scalar("step/loss", loss, step + i)
    for name, value in row.items():
        board.add_scalar(f"epoch/{name}", value, row["epoch"])
    board.flush()


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one.

    Raises:
        ValueError: a device that torch does not know, or CUDA where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r}: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name!r}: this machine has no CUDA device; 'auto' or 'cpu' will do"
        )
    return device
