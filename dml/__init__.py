"""Mixup for deep metric learning: the module behind the book (book/index.md)."""

import warnings

# Libraries of libraries import tqdm's widget bar; in a notebook without ipywidgets it complains of
# that by its own path, and every rendered page and every run's record would carry it.
warnings.filterwarnings("ignore", message="IProgress not found")
