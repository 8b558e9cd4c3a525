"""What one run keeps: its folder, checkpoints, history, report and figures; and how a command ends."""
