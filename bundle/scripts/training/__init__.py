"""Training of both stages with MONAI's engines."""

from .adversarial import Adversarial, HeldOutAdversarial, new_discriminator, two_rates
from .checkpoints import TrainingCheckpoint, claim_folder, require_epochs
from .consistency import Consistency
from .handlers import AveragedWeights, EpochSeed, GradientGuard, LearningRateSchedule
from .length import run_length, steps_of, tell_length
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
from .muon import MuonAndAdamW
from .objectives import (
    Denoising,
    HeldOut,
    LocalDenoising,
    Objective,
    ObjectiveBatch,
    Refining,
    Routed,
    local_denoising,
    numbers_of,
    sum_of_terms,
)
from .opening import TrainingStep, end_plan, require_memory, tell_data, tell_time, tell_weights
from .pictures import TrainingPictures
from .reconstruction import HeldOutReconstruction, Reconstructing, new_discriminators
from .stages import (
    finetuned_network,
    global_stage,
    high_resolution_grid,
    high_resolution_network,
    latent_network,
    new_local_denoiser,
    new_network,
    parameters_to_train,
    require_grid,
    require_same_volumes,
    start_from,
)
from .tracking import require_mlflow
