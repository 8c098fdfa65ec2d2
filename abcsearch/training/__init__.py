"""One training loop for everything that trains (`loop`), and scoring on a split (`scoring`)."""
