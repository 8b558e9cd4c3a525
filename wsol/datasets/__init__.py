"""Data sets that this program can make itself, in wsolevaluation's format.

synthetic: drawn creatures, the embedded default. cutouts: cut-out photographs of objects on photographs.
writer: what both share, the text files and the all-or-nothing appearance of the folders.
"""

from wsol.datasets.cutouts import make_cutouts
from wsol.datasets.synthetic import make_synthetic
from wsol.datasets.writer import Record, publish_dataset, write_metadata

__all__ = ["Record", "make_cutouts", "make_synthetic", "publish_dataset", "write_metadata"]
