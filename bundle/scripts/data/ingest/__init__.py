"""Any CT to a prepared data set."""

from .dataset import prepare_dataset
