"""EWA in other trainers. Each module has the name of the package that it is for."""
