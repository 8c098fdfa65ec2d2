"""After a search, and beside it: how far runs are, their fine-tuning, exports and reports."""
