"""What progress.json calls the stages of a run that are not a search."""

TUNING = "fine-tuning"  # what the stages of fine-tuning begin with
PREPARING = "preparing"  # and those of what is trained before a search
FAILED = f"{PREPARING} failed"  # of one that will fail again with the same settings; and why
CHAINING = f"{TUNING} link"  # of a chain; and the name of its transform
