"""Every method of the survey, on one network, at one budget, by one recipe."""
