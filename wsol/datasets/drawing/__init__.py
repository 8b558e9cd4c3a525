"""Drawing the creatures of the data set `Synthetic`: outlines, creatures made of them, and paint."""
