"""What is there for speed only: with plain PyTorch in its place everything computes the same."""
