"""Published datasets, one module each, and shared functions that find, download and unpack their files."""
