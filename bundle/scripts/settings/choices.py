"""Names and bounds of settings that others need too. What has these names registers itself elsewhere, with PyTorch."""

SOLVERS = ("predictor_corrector", "euler", "heun", "rk4", "adams_bashforth", "ddim", "multistep", "dpm_solver")
SPACINGS = ("uniform", "quadratic", "two_sided")
PROCESSES = ("cosine_sine", "flow_matching", "ddpm_linear", "ddpm_cosine", "direct")
ENCODINGS = ("voxels", "haar", "latents")
TRAINING_TIMES = ("uniform", "logit_normal")
WRITERS = ("nifti", "preview", "view", "dicom")
LARGEST_IN_SCHEDULE = 100  # of the numbers of fitted steps
