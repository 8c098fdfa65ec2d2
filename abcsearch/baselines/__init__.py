"""What the winner of a search is compared with: structures by a rule, and other searches at equal cost."""
