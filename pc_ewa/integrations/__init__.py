"""EWA in the trainers of others; each module has the name of the package that it serves."""
