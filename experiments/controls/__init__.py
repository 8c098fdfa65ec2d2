"""Is it the structure or the weights? The winner beside its structure with other weights, and other structures."""
