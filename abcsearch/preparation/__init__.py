"""What is trained before a search: weights that candidates come from, and structures to begin with."""
