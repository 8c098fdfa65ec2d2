"""What only a GPU shows, in ten minutes."""
