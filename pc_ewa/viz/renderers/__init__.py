"""The renderers: each draws any scene."""
