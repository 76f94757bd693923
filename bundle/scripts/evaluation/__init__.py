"""Evaluation of generated volumes: sets, records, comparison, report, W-score."""

from .comparison import Comparison, choose_metrics, needs_features
from .evaluation import Evaluation
from .models import PaperSampler
from .opening import tell_evaluation
from .records import KeepSized, MeasureVolumed, RecordStore, RecordWriter
from .sweep import SamplingSweep, sweep_folders
from .tables import Paper
from .volume_sets import common_grid, load_sets
from .wscore import WScore
