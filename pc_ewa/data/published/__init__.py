"""Published datasets, one module for each, and what they share: finding, downloading and unpacking their files."""
