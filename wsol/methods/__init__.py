"""Weakly supervised training methods of `--wsol_method`, by their command-line names.

`cam` is plain training. Methods that change the images, the network or the loss
(HaS, CutMix, ADL, ACoL, SPG) get a file each here and a line in this table.
"""

METHODS = {"cam": "plain training (Zhou et al., CVPR 2016)"}
