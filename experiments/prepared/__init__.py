"""Does training before the search pay, and by which recipe?"""
