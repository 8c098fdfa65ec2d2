"""What is done to a network beside pruning: low rank."""
