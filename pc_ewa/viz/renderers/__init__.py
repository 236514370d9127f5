"""Renderers. Each can draw any scene."""
