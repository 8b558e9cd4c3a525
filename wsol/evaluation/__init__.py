"""What one evaluation keeps: a split's metrics, fidelity, what each image did, saved maps, runs compared."""
