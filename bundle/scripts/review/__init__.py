"""Pages on which radiologists look at volumes and judge them; they open from disk, without server and network."""

from .view import view_folders
from .viewer import Viewed, write_reader_page, write_view, write_volume_script
