"""Readers of file formats, none of which runs or trusts anything in a file."""
