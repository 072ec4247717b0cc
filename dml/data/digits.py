"""Digits: scikit-learn's 1,797 handwritten digits of 8x8 pixels, for smoke tests only.

Classes 0 to 4 train, 5 to 9 test. Pixels alone retrieve nearly everything, so nothing can be
learnt from a score on it.
"""

import torch
from sklearn.datasets import load_digits

from dml.data.split import Sets, Split


def read(root=None) -> Sets:
    """The digits; nothing is stored, so `root` is ignored. Images are uint8 (n, 1, 8, 8)."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    whole = Split(images, labels, [str(digit) for digit in range(10)])
    return Sets(whole.of_classes(range(5)), whole.of_classes(range(5, 10)))
