# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-training)=
# # One notebook trains anything
#
# This page is a chapter and a program. Read from top to bottom it explains a run: a
# baseline or Metrix, any data set, any loss, any space to mix in, with or without a
# GPU. Executed by papermill with one of the recipes in `book/recipes`, it *is* the run.
# Nothing else in this project trains Metrix. By its end you will have seen every line
# that decides a number in {ref}`ch-results`.
#
# In a terminal, from the project's folder, one run is
#
# ```bash
# make run DATASET=glyphs LOSS=multi_similarity MIX=feature SEED=0
# ```
#
# or, without `make`, with all that papermill offers,
#
# ```bash
# papermill book/06_training.ipynb out.ipynb -f book/recipes/glyphs.yaml -p mix feature
# ```

# %% tags=["remove-cell"]
import inspect

from IPython.display import Code
from myst_nb import glue

from dml import plot, runs, train

plot.use_style()

# %% [markdown]
# ## The parameters are the experiment
#
# Everything that decides a run stands in one cell. A recipe, or `-p` on the command
# line, replaces values.

# %% tags=["parameters"]
dataset: str = "glyphs"  # a name of dml.data.NAMES
dataset_options: dict = {}  # passed to the data set's reader
loss: str = "multi_similarity"  # a name of dml.losses.LOSSES
loss_options: dict = {}  # hyper-parameters of the loss; the paper's where left out
miner_epsilon: float = None  # multi-similarity's miner; None compares every pair
mix: str = "embed"  # none; Metrix's input, feature or embed; a name of mixing_methods
pairs: list = ["positive-negative", "anchor-negative"]  # one is drawn an iteration
hardest: int = 3  # k: negatives of an anchor that are mixed; None for all
positives: int = None  # positives of an anchor that are mixed; None for all
alpha: float = 2.0  # lambda ~ Beta(alpha, alpha)
weight: float = 0.4  # w: of the mixed loss
backbone: str = "small"  # or any model of timm, such as resnet50.tv_in1k
weights: str = "none"  # or pretrained, or a path to a state dict
frozen_bn: bool = False  # batch norm keeps its pretrained statistics
embedding_size: int = 128  # dimensions of an embedding
augment: str = "none"  # a name of dml.data.transforms.AUGMENTATIONS
epochs: int = 10  # passes over the training images
batch_size: int = 100  # images of a step
images_per_class: int = 5  # of a batch; None shuffles freely
lr: float = 0.001  # Adam's learning rate
proxy_lr_factor: float = 100.0  # proxies learn faster: each sees few gradients
weight_decay: float = 0.0001  # Adam's
adam_eps: float = 1e-8  # Adam's; large, it turns Adam towards gradient descent
warmup: int = 0  # first epochs, in which the head and the proxies learn alone
schedule: str = "cosine"  # of the learning rate, down to zero; or step
lr_step: int = 10  # epochs between two steps
lr_gamma: float = 0.1  # factor of a step
clip_value: float = 10.0  # bound of each component of the gradient; None for none
eval_every: int = 2  # epochs between two evaluations
k: list = [1, 2, 4, 8]  # of Recall@K
clustering: bool = False  # NMI and AMI of k-means, after the last epoch
space: bool = False  # alignment, uniformity, utilization and more, after the last epoch
folds: int = 0  # parts of the training classes, one held out; 0 tests instead
fold: int = 0  # which of them is held out
seed: int = 0  # of weights, batches and mixing; equal seeds see equal batches
device: str = "auto"  # the GPU where there is one
precision: str = "float32"  # of the network, or bfloat16, float16
channels_last: bool = False  # order of feature maps in memory: faster convolutions
compile: bool = False  # torch.compile of the backbone
accumulate: int = 1  # parts of a batch that pass the backbone in turn: less memory
processes: int = 1  # replicas on this machine that share the work, one a GPU
workers: int = 0  # processes that decode images
root: str = None  # folder of the data sets; None is the project's datasets/
profile: str = "paper"  # the run's size, a part of its name: smoke or paper
tag: str = ""  # a word for a variant, part of the run's name

# %% [markdown]
# A misspelt name or a value of the wrong type stops the run here, before any work,
# with the list of what is valid. (papermill alone would only warn.)

# %%
config = train.Config.from_namespace(globals())
config.id

# %% [markdown]
# ## The data
#
# Classes to train on and classes to test on share no member: the network is asked about
# things that it has never seen. Whoever chooses a hyper-parameter must not look at the
# test classes: `folds=4, fold=0` holds out a quarter of the training classes and judges
# by them, as {cite:t}`musgrave2020reality` ask for.

# %%
sets = train.load(config)
{name: (len(s), len(s.classes)) for name, s in vars(sets).items() if s is not None}

# %% [markdown]
# (images and classes of each split; without a gallery the queries search each other).
#
# ## The step
#
# A step is the algorithm of the paper. The backbone runs once. Its feature maps serve
# the clean loss, and whatever space the mixing happens in: {eq}`eq-total` is the branch
# that the comment marks.

# %% tags=["hide-input"]
Code(inspect.getsource(train.steps), language="python")

# %% [markdown]
# What `network.mixer` returns is the only difference between the three spaces of
# Metrix: which part of the network runs again on mixed examples.

# %% tags=["hide-input"]
Code(inspect.getsource(train.model.EmbeddingModel.mixer), language="python")

# %% [markdown]
# ## The run
#
# A run that has a record is not run again; one that was stopped continues after its
# last whole epoch, and ends as if it had not been stopped: after each, Accelerate
# writes weights, optimiser and random numbers (`dml/checkpoints.py`). The record is
# written at the end, whole or not at all. Meanwhile
# `tensorboard --logdir results/runs` shows the loss of every step. With `processes=2`
# Accelerate starts as many replicas, one a GPU where there are GPUs: each passes its
# share of the batch through the backbone and sees the features of all, so that the loss
# compares every image with every other, as in one process.

# %%
record = runs.finished(config)
if record is None:
    _, outcome = train.launch(config, sets, runs.checkpoint(config.id))
    record = runs.write(config, outcome)

# %% [markdown]
# ## What came out
#
# The curve is of this run alone; {ref}`ch-results` sets runs side by side.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The run of this page: the training loss and, on classes it has not seen, Recall@1, by epoch.", "name": "fig-run"}, "image": {"alt": "Two curves by epoch: the training loss falls while Recall@1 on unseen classes rises and levels off."}}
plot.run_curve(record)
# %% tags=["remove-cell"]
last, best = record["metrics"]["last"], record["metrics"]["best"]
shown = {
    "id": record["id"],
    "last": f"{last['recall_at_1']:.1%}",
    "last_epoch": last["epoch"],
    "best": f"{best['recall_at_1']:.1%}",
    "best_epoch": best["epoch"],
    "rate": f"{record['images_per_second']:,.0f}",
    "device": record["device"],
}
for name, value in shown.items():
    glue(f"run-{name}", value, display=False)

# %% [markdown]
# After its last epoch, {glue:text}`run-last_epoch`, the network ranks an image of the
# right class first for {glue:text}`run-last` of the queries. That is the number that
# counts. The best epoch, {glue:text}`run-best_epoch`, has {glue:text}`run-best`: a
# choice made on the test classes, which the record keeps under its own name because
# the papers report such numbers. Training went at {glue:text}`run-rate` images a second
# on {glue:text}`run-device`.
#
# ## What we saw
#
# One page holds an experiment: a configuration, a step that mixes in one branch, a
# record. What decides a number is in the configuration or it does not exist.
#
# ## Exercises
#
# 1. Run this page with `mix="none"` and with `mix="input"`. How does the number of
#    images a second change, and why? (`positives=1` helps `input`. Why?)
# 2. Misspell a parameter: `papermill book/06_training.ipynb out.ipynb -p los nca`.
# 3. Stop a run half-way with Ctrl-C and start it again. What does its curve look like?
