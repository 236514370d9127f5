"""Checkpoint files of Point-MAE, Point-BERT and pc-ewa: reading, renaming of keys, loading into a model, writing."""
