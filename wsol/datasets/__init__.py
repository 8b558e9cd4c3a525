"""Data sets in wsolevaluation's format: listing, reading, checking, loading, generating and writing them.

registry: known data sets and splits. reader: the text files. load: a whole data set, its files checked.
images, masks: decoding. writer: the text files, written. synthetic, cutouts: data sets that we generate.
Everything is loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
