"""What is done to a network after the search: low rank, sparsity, codebooks; a chain of them, by name."""
