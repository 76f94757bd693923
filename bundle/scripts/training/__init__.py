"""Training of both stages with MONAI's engines."""

from .checkpoints import TrainingCheckpoint, claim_folder, require_epochs
from .handlers import EMAWarmUp, EpochSeed, FrozenAverage, GradientGuard, LearningRateSchedule
from .high_resolution import high_resolution_grid, high_resolution_network
from .length import run_length, tell_length
from .monitoring import (
    LastValidation,
    LossCSV,
    LossMetric,
    TensorBoardLog,
    TrainingProgress,
    tell_run,
    term_metrics,
    validation_share,
)
from .objectives import (
    Denoising,
    HeldOut,
    LocalDenoising,
    Objective,
    ObjectiveBatch,
    Refining,
    local_denoising,
    numbers_of,
    sum_of_terms,
)
from .opening import TrainingStep, end_plan, require_memory, tell_data, tell_time, tell_weights
from .pictures import TrainingPictures
from .stages import data_of, parameters_to_train, require_grid, start_from, with_frozen_local, with_frozen_residual
from .tracking import require_mlflow
