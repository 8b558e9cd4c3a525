"""Training methods of weakly supervised localization by their command-line names (`--wsol_method`).

`cam` is plain training. Methods that change the images, the network or the loss (HaS, CutMix, ADL, ACoL, SPG) will get
one file each here and one line in this table.
"""

METHODS = {"cam": "plain training (Zhou et al., CVPR 2016)"}
