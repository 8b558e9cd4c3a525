"""Metadata from the files that data sets are published with: CUB-200-2011, Stanford Cars, ILSVRC 2012.

The results equal wsolevaluation's own files byte for byte (ids, order, class indices, boxes), as tests show. Official
files do not contain everything, though: not the val splits of CUB (CUBv2) and ILSVRC (ImageNetV2 with wsolevaluation's
boxes), nor ILSVRC's proxy training set, nor OpenImages30k. `wsol.datasets.copying` copies those.
"""
