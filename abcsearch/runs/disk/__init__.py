"""What lies in a run folder, and how it is written so that a kill at any instant loses nothing."""
