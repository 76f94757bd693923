"""`prdit`: its commands, how they become runs of MONAI, and what it tells around them.

Nothing here imports PyTorch or MONAI before a run needs it: a list of commands or a typing error takes no ten seconds.
"""

from .main import run
