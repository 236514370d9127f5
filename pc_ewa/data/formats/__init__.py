"""Readers of file formats. No reader executes anything in a file, or allocates what a header merely claims."""
