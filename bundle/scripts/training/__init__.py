"""Training of both stages with MONAI's engines."""

from .handlers import EpochSeed, GradientGuard, LearningRateSchedule, TrainingCheckpoint
from .losses import NoiseSignalLoss, loss_terms, noise_signal_errors
from .monitoring import LossCSV, LossMetric, TrainingProgress
from .prepare_batch import (
    LocalWindowPrepareBatch,
    PaddedLocal,
    SchedulerPrepareBatch,
    ValidationPrepareBatch,
    training_batches,
)
from .stages import parameters_to_train, start_from, trained_module, with_frozen_local
